"""The arena without its page: anonymous pairs in random order, their answers as they are written, votes."""

from __future__ import annotations

import queue
import random
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime

from instruct_lit.core.data.example import Example
from instruct_lit.core.generation.engine import Engine, MakeWeights
from instruct_lit.core.generation.sampling import SamplingSettings
from instruct_lit.errors import DataError
from instruct_lit.serving.conversation import ChatModel
from instruct_lit.serving.scheduler import Scheduler, Update
from instruct_lit.serving.votes import VoteFile
from instruct_lit.suites.ratings import WINNERS

_RANDOM = random.SystemRandom()  # nobody can tell the order from the seed


@dataclass
class Round:
    """One question to two models; the first is shown as A."""

    instruction: str
    given: str
    models: tuple[int, int]
    seed: int
    answers: list[str] = field(default_factory=lambda: ["", ""])
    finished: bool = False
    winner: str | None = None


class Arena:
    """At least two models, the file of their votes, and questions to draw from (pairs of instruction and input)."""

    def __init__(
        self,
        speakers: Sequence[ChatModel],
        settings: SamplingSettings,
        votes: VoteFile,
        questions: Sequence[tuple[str, str]] = (),
        max_rows: int = 8,
        make_weights: MakeWeights | None = None,
    ) -> None:
        self.speakers, self.settings, self.votes, self.questions = speakers, settings, votes, questions
        self._voting = threading.Lock()  # two buttons pressed at once are one vote
        self.schedulers = [
            Scheduler(Engine(speaker.model, speaker.tokenizer, max_rows, make_weights)) for speaker in speakers
        ]

    def question(self) -> tuple[str, str]:
        """One of the questions, drawn at random."""
        return _RANDOM.choice(self.questions)

    def pair(self, instruction: str, given: str) -> Round:
        """A round with two of the models in random order. Raises DataError for an instruction that is empty."""
        if not instruction.strip():
            raise DataError("the instruction is empty")
        first, second = _RANDOM.sample(range(len(self.speakers)), 2)
        return Round(instruction, given, (first, second), _RANDOM.randrange(2**62))

    def answer(self, battle: Round) -> Iterator[tuple[str, str]]:
        """Both answers as they grow; a caller that stops reading cancels them.

        Raises DataError where the prompt is too long for one of the models.
        """
        updates: queue.SimpleQueue[tuple[int, Update]] = queue.SimpleQueue()
        tickets = []
        try:
            for side, number in enumerate(battle.models):
                speaker, scheduler = self.speakers[number], self.schedulers[number]
                prompt = speaker.prompt_ids(Example(battle.instruction, "", battle.given))
                settings = speaker.ending(replace(self.settings, seed=battle.seed))
                request = scheduler.engine.prepare(prompt, settings)
                tell = lambda update, side=side: updates.put((side, update))  # noqa: E731
                tickets.append((scheduler, scheduler.submit([(request, tell)], every_step=True)))
            n_left = 2
            while n_left:
                side, update = updates.get()
                battle.answers[side] = update.text
                n_left -= update.finish_reason is not None
                yield battle.answers[0], battle.answers[1]
            battle.finished = True
        finally:
            for scheduler, accepted in tickets:
                scheduler.cancel(accepted)

    def vote(self, battle: Round, winner: str) -> tuple[str, str]:
        """Keep a vote and return the names of A and B. Raises DataError for a second vote and for one too early."""
        assert winner in WINNERS
        name_a, name_b = (self.speakers[number].name for number in battle.models)
        vote = {
            "time": datetime.now(UTC).isoformat(timespec="seconds"), "judge": "human", "model_a": name_a,
            "model_b": name_b, "winner": winner, "instruction": battle.instruction, "input": battle.given,
            "response_a": battle.answers[0], "response_b": battle.answers[1],
            "settings": asdict(replace(self.settings, seed=battle.seed)),
        }  # fmt: skip
        with self._voting:
            if not battle.finished:
                raise DataError("the answers are not finished")
            if battle.winner is not None:
                raise DataError("this round has been voted on; start another")
            self.votes.append(vote)
            battle.winner = winner
        return name_a, name_b

    def close(self) -> None:
        """End the threads."""
        for scheduler in self.schedulers:
            scheduler.close()
