"""A judge over the responses of an evaluation: scores on a scale, or a comparison of two models' responses."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from instruct_lit.core.data.tokenizer import GPT2Tokenizer
from instruct_lit.errors import ConfigError
from instruct_lit.evaluation.comparison import Outcome, Pair, questions_of, win_rate
from instruct_lit.evaluation.judging.agreement import agreement, read_scores
from instruct_lit.evaluation.judging.judge import Judge, Judgement, summary
from instruct_lit.evaluation.judging.prompt import JudgePrompt, texts_of


@dataclass(frozen=True)
class ResponseJudge:
    """A judge with its prompt, or existing scores.

    Args:
        scale: the lowest and the highest score.
        scores: without a judge, the file with one score per response (`judge.path`).
        calibrate: the file with other scores of the same responses, whose agreement is computed.
    """

    name: str
    model: str | None = None
    judge: Judge | None = None
    prompt: JudgePrompt | None = None
    scale: tuple[float, float] = (0, 100)
    scores: Path | None = None
    calibrate: Path | None = None

    def score(self, rows: Sequence[dict[str, Any]], seed: int = 0) -> dict[str, Any]:
        """Score every row, which gets its verdict as `judge`; return the summary, usage and agreement.

        Raises: JudgeError, ConfigError without confirmation of a paid judge, DataError for an unusable file of scores.
        """
        low, high = self.scale
        others = None
        if self.calibrate is not None:  # read before anything is paid for
            others = read_scores(self.calibrate, len(rows), "judge.calibrate", low, high)
        if self.judge is not None and self.prompt is not None:
            judgements = ask_judge(self.judge, self.prompt, [self.prompt.render(texts_of(row)) for row in rows])
        else:
            assert self.scores is not None
            judgements = [Judgement(s, "", 1) for s in read_scores(self.scores, len(rows), "judge.path", low, high)]
        for row, judgement in zip(rows, judgements, strict=True):
            row["judge"] = judgement.as_record()
        found = {"name": self.name, "model": self.model, **summary(judgements, low, high, seed)}
        if self.judge is not None:
            found |= self.judge.usage()
        if others is not None:
            found["agreement"] = agreement([judgement.value for judgement in judgements], others, low, high)
        return found

    def compare(self, pairs: Sequence[Pair], rows: Sequence[dict[str, Any]], seed: int = 0) -> dict[str, Any]:
        """Compare the responses of every pair in both orders; `rows[i]` gets the verdicts on `pairs[i]` as `judge`.

        Equal responses are a tie without a question.
        """
        assert self.judge is not None and self.prompt is not None
        differs = [a["response"] != b["response"] for a, b in pairs]
        asked = [pair for pair, differ in zip(pairs, differs, strict=True) if differ]
        texts = [self.prompt.render(texts) for pair in asked for texts in questions_of(pair)]
        verdicts = iter(ask_judge(self.judge, self.prompt, texts))
        outcomes = []
        for row, differ in zip(rows, differs, strict=True):
            both = (next(verdicts), next(verdicts)) if differ else ()
            outcomes.append(Outcome.of(*(judgement.value for judgement in both)) if both else Outcome("tie", "tie"))
            row["judge"] = {"share": outcomes[-1].share, "verdicts": [judgement.as_record() for judgement in both]}
        lengths = [(len(a["response"]), len(b["response"])) for a, b in pairs]
        return {"model": self.model, **win_rate(outcomes, lengths, seed, differs.count(False)), **self.judge.usage()}


def ask_judge(judge: Judge, prompt: JudgePrompt, questions: Sequence[str]) -> list[Judgement]:
    """Print the estimate, get a confirmation where the judge costs money, and ask with a progress bar.

    Raises: ConfigError without the confirmation, JudgeError as `Judge.ask`.
    """
    tokenizer = GPT2Tokenizer()
    estimate = judge.estimate(prompt.verdict, questions, lambda text: len(tokenizer.encode(text)))
    print(f"judge {judge.endpoint.model}: {estimate}", flush=True)
    if judge.must_be_confirmed and estimate.n_left and not _confirmed():
        raise ConfigError(
            "judge.confirmed=false: nothing was asked, since this judge costs money; see the estimate and give "
            "judge.confirmed=true, or judge.paid=false for a server of your own"
        )
    with tqdm(total=estimate.n_questions, desc="judge", unit="question", file=sys.stdout) as bar:
        return judge.ask(prompt, questions, bar.update)


def _confirmed() -> bool:
    """Whether a person at the terminal confirms."""
    try:
        return sys.stdin.isatty() and input("ask it? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:  # Ctrl-D
        return False
