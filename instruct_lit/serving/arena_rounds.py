"""The arena without its page: anonymous pairs in random order, streamed answers, and votes with their file."""

import queue
import random
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from instruct_lit.core.data.example import Example
from instruct_lit.core.generation.engine import Engine
from instruct_lit.core.generation.sampling import SamplingSettings
from instruct_lit.errors import DataError
from instruct_lit.evaluation.jsonl_log import JsonlLog
from instruct_lit.evaluation.ratings import SPELLINGS, WINNERS, Battle, model_name
from instruct_lit.serving.chat_model import ChatModel
from instruct_lit.serving.scheduler import Scheduler, Update

Question = tuple[str, str]  # instruction and input
_RANDOM = random.SystemRandom()  # the order cannot be predicted from a seed


class VoteFile(JsonlLog):
    """A file of votes."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "votes", "vote")

    def read(self) -> list[dict[str, Any]]:
        """All votes between two models, with our spelling of a winner; other lines are skipped."""
        votes = []
        for vote in super().read():
            a, b, winner = (vote.get(field) for field in ("model_a", "model_b", "winner"))
            winner = SPELLINGS.get(str(winner), winner)
            if isinstance(a, str) and isinstance(b, str) and a != b and isinstance(winner, str) and winner in WINNERS:
                votes.append({**vote, "winner": winner})
        return votes

    def battles(self) -> list[Battle]:
        """The votes as battles, in the order in which they were cast."""
        return [
            Battle(model_name(vote["model_a"]), model_name(vote["model_b"]), vote["winner"]) for vote in self.read()
        ]


@dataclass
class Round:
    """One question to two models, given as indices; the first is shown as A."""

    question: Question
    models: tuple[int, int]
    seed: int
    answers: list[str] = field(default_factory=lambda: ["", ""])
    finished: bool = False
    winner: str | None = None


class Arena:
    """At least two models, the file of their votes, and questions to draw from.

    Args:
        engine_options: see `Engine`; every model has an engine of its own.
    """

    def __init__(
        self,
        chat_models: Sequence[ChatModel],
        settings: SamplingSettings,
        votes: VoteFile,
        questions: Sequence[Question] = (),
        **engine_options: Any,
    ) -> None:
        self.chat_models, self.settings, self.votes, self.questions = chat_models, settings, votes, questions
        self._voting = threading.Lock()  # two buttons pressed at once are one vote
        self.schedulers = [Scheduler(Engine(one.model, one.tokenizer, **engine_options)) for one in chat_models]

    def random_question(self) -> Question:
        """One of the questions, drawn at random; empty where there are none."""
        return _RANDOM.choice(self.questions or [("", "")])

    def new_round(self, instruction: str, input_text: str) -> Round:
        """A round with two of the models in random order. Raises DataError for an empty instruction."""
        if not instruction.strip():
            raise DataError("the instruction is empty; type one")
        first, second = _RANDOM.sample(range(len(self.chat_models)), 2)
        return Round((instruction, input_text), (first, second), _RANDOM.randrange(2**62))

    def answers(self, battle: Round) -> Iterator[tuple[str, str]]:
        """Stream both answers, the text so far of each; closing the iterator cancels them.

        Raises: DataError where the prompt is too long for one of the models, or a model fails.
        """
        updates: queue.SimpleQueue[Update] = queue.SimpleQueue()
        sides = {}  # by request: 0 is A, 1 is B
        try:
            for side, number in enumerate(battle.models):
                chat_model, scheduler = self.chat_models[number], self.schedulers[number]
                prompt = chat_model.prompt_ids(Example(battle.question[0], "", battle.question[1]))
                settings = chat_model.with_stops(replace(self.settings, seed=battle.seed))
                request = scheduler.engine.prepare(prompt, settings)
                scheduler.submit([request], updates.put, every_step=True)
                sides[request] = side
            n_left = 2
            while n_left:
                update = updates.get()
                if update.finish_reason == "cancelled":
                    raise DataError("a model failed while it answered; see the log, then ask again")
                battle.answers[sides[update.request]] = update.text
                n_left -= update.finish_reason is not None
                yield battle.answers[0], battle.answers[1]
            battle.finished = True
        finally:
            for request, side in sides.items():
                self.schedulers[battle.models[side]].cancel([request])

    def vote(self, battle: Round, winner: str) -> tuple[str, str]:
        """Save a vote and return the names of A and B.

        Raises: DataError before the answers are complete, and for a second vote.
        """
        assert winner in WINNERS
        name_a, name_b = (self.chat_models[number].name for number in battle.models)
        vote = {
            "time": datetime.now(UTC).isoformat(timespec="seconds"), "judge": "human", "model_a": name_a,
            "model_b": name_b, "winner": winner, "instruction": battle.question[0], "input": battle.question[1],
            "response_a": battle.answers[0], "response_b": battle.answers[1],
            "settings": asdict(replace(self.settings, seed=battle.seed)),
        }  # fmt: skip
        with self._voting:
            if not battle.finished:
                raise DataError("the answers are not complete; wait for both")
            if battle.winner is not None:
                raise DataError("this round already has a vote; ask another question")
            self.votes.append(vote)
            battle.winner = winner
        return name_a, name_b

    def close(self) -> None:
        """End the threads."""
        for scheduler in self.schedulers:
            scheduler.close()
