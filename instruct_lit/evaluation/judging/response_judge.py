"""A judge over the responses of an evaluation: scores on a scale, or a comparison of two models' responses."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from statistics import fmean, median_low, multimode
from typing import Any

from tqdm import tqdm

from instruct_lit.core.data.tokenizer import GPT2Tokenizer
from instruct_lit.errors import ConfigError
from instruct_lit.evaluation.comparison import Outcome, Pair, questions_of, win_rate
from instruct_lit.evaluation.judging.agreement import agreement, read_scores
from instruct_lit.evaluation.judging.judge import MAX_UNPARSED, Judge, Judgement, summary
from instruct_lit.evaluation.judging.prompt import JudgePrompt, texts_of


@dataclass(frozen=True)
class ResponseJudge:
    """A judge, or a panel of several, with its prompt; or existing scores."""

    name: str
    model: str | None = None
    judges: Sequence[Judge] = ()
    prompt: JudgePrompt | None = None
    scale: tuple[float, float] = (0, 100)  # the lowest and the highest score
    combine: str = "mean"  # of a panel's verdicts, or the `majority`, the most frequent value
    max_unparsed: float = MAX_UNPARSED  # share of unparsed verdicts above which there is no score and no win rate
    scores: Path | None = None  # without a judge, the file with one score per response (`judge.path`)
    calibrate: Path | None = None  # the file with other scores of the same responses, whose agreement is computed

    def score(self, rows: Sequence[dict[str, Any]], seed: int = 0) -> dict[str, Any]:
        """Score every row, which gets its verdict as `judge`; return the summary, usage and agreement.

        Raises: JudgeError, ConfigError without confirmation of a paid judge, DataError for an unusable file of scores.
        """
        low, high = self.scale
        others = None
        if self.calibrate is not None:  # read before anything is paid for
            others = read_scores(self.calibrate, len(rows), "judge.calibrate", low, high)
        if self.prompt is not None:
            by_judge = self._ask([self.prompt.render(texts_of(row)) for row in rows])
        else:
            assert self.scores is not None
            scores = read_scores(self.scores, len(rows), "judge.path", low, high)
            by_judge = {self.name: [Judgement(score, "", 1) for score in scores]}
        judgements = [self._combined(of_row) for of_row in zip(*by_judge.values(), strict=True)]
        for number, (row, judgement) in enumerate(zip(rows, judgements, strict=True)):
            row["judge"] = judgement.as_record()
            if len(by_judge) > 1:
                row["judge"]["judges"] = {label: found[number].as_record() for label, found in by_judge.items()}
        figures_of = partial(summary, low=low, high=high, seed=seed, max_unparsed=self.max_unparsed)
        found = {"name": self.name, "model": self.model, **figures_of(judgements)}
        found |= self._panel(by_judge, figures_of, lambda judgement: judgement.value, self.scale)
        if others is not None:
            found["agreement"] = agreement([judgement.value for judgement in judgements], others, low, high)
        return found

    def compare(self, pairs: Sequence[Pair], rows: Sequence[dict[str, Any]], seed: int = 0) -> dict[str, Any]:
        """Compare the responses of every pair in both orders; `rows[i]` gets the verdicts on `pairs[i]` as `judge`.

        Equal responses are a tie without a question.
        """
        assert self.prompt is not None
        differs = [a["response"] != b["response"] for a, b in pairs]
        asked = [pair for pair, differ in zip(pairs, differs, strict=True) if differ]
        by_judge = self._ask([self.prompt.render(texts) for pair in asked for texts in questions_of(pair)])
        outcomes: dict[str, list[Outcome]] = {label: [] for label in by_judge}
        verdicts: list[list[dict[str, Any]]] = [[] for _ in rows]
        for label, judgements in by_judge.items():
            in_turn = iter(judgements)
            for differ, of_row in zip(differs, verdicts, strict=True):
                both = (next(in_turn), next(in_turn)) if differ else ()
                outcomes[label].append(Outcome.of(*(j.value for j in both)) if both else Outcome("tie", "tie"))
                of_row += [j.as_record() | ({"judge": label} if len(by_judge) > 1 else {}) for j in both]
        of_pairs = list(zip(*outcomes.values(), strict=True))
        combined = [Outcome.majority(of_pair) for of_pair in of_pairs]
        shares = [outcome.share for outcome in combined]
        if self.combine == "mean":
            shares = [fmean(outcome.share for outcome in of_pair) for of_pair in of_pairs]
        for row, share, of_row in zip(rows, shares, verdicts, strict=True):
            row["judge"] = {"share": share, "verdicts": of_row}
        lengths, n_equal = [(len(a["response"]), len(b["response"])) for a, b in pairs], differs.count(False)
        figures_of = partial(win_rate, lengths=lengths, seed=seed, n_equal=n_equal, max_unparsed=self.max_unparsed)
        found = {"model": self.model, **figures_of(combined, shares=shares)}
        return found | self._panel(outcomes, figures_of, lambda outcome: outcome.share, (0, 1))

    def _ask(self, questions: Sequence[str]) -> dict[str, list[Judgement]]:
        """The judgements of every judge by the name of its model, numbered where several have one."""
        assert self.prompt is not None
        found: dict[str, list[Judgement]] = {}
        for judge in self.judges:
            label = judge.endpoint.model
            label += f" #{len(found) + 1}" if label in found else ""
            found[label] = ask_judge(judge, self.prompt, questions)
        return found

    def _combined(self, judgements: Sequence[Judgement]) -> Judgement:
        """The verdict of a panel, unparsed where that of more than half of its judges is."""
        if len(judgements) == 1:
            return judgements[0]
        values = [judgement.value for judgement in judgements if judgement.value is not None]
        value = None
        if 2 * len(values) >= len(judgements):
            value = fmean(values) if self.combine == "mean" else median_low(multimode(values))
        return Judgement(value, "", max(judgement.n_asked for judgement in judgements))

    def _panel(
        self,
        verdicts: Mapping[str, Sequence[Any]],
        figures_of: Callable[[Sequence[Any]], dict[str, Any]],
        value_of: Callable[[Any], float | None],
        scale: tuple[float, float],
    ) -> dict[str, Any]:
        """The usage of all judges; of a panel also the figures of each, and the agreement of every two."""
        usages = [judge.usage() for judge in self.judges]
        total = {key: sum(u[key] for u in usages) for key in (usages or [{}])[0] if all(key in u for u in usages)}
        if len(usages) < 2:
            return total
        judges = {label: figures_of(own) | usage for (label, own), usage in zip(verdicts.items(), usages, strict=True)}
        values = {label: list(map(value_of, own)) for label, own in verdicts.items()}
        pairs = {f"{a}, {b}": agreement(values[a], values[b], *scale) for a, b in combinations(values, 2)}
        return {**total, "judges": judges, "panel_agreement": pairs}


def ask_judge(judge: Judge, prompt: JudgePrompt, questions: Sequence[str]) -> list[Judgement]:
    """Print the estimate, get a confirmation where the judge costs money, and ask with a progress bar.

    Raises: ConfigError without the confirmation, JudgeError as `Judge.ask`.
    """
    tokenizer = GPT2Tokenizer()
    estimate = judge.estimate(prompt.verdict, questions, lambda text: len(tokenizer.encode(text)))
    print(f"judge {judge.endpoint.model}: {estimate}", flush=True)
    if judge.must_be_confirmed and estimate.n_left and not confirmed("ask it?"):
        raise ConfigError(
            "judge.confirmed=false: nothing was asked, since this judge costs money; see the estimate and give "
            "judge.confirmed=true, or judge.paid=false for a server of your own"
        )
    with tqdm(total=estimate.n_questions, desc="judge", unit="question") as bar:
        return judge.ask(prompt.verdict, questions, bar.update)


def confirmed(question: str) -> bool:
    """Whether a person at the terminal confirms."""
    try:
        return sys.stdin.isatty() and input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:  # Ctrl-D
        return False
