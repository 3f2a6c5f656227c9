"""Filters by quality: scores by hand, bounds, the cache, and what is covered."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf

from instruct_lit.config.check_commands import check_command
from instruct_lit.config.filter_builders import filters_of
from instruct_lit.config.run_folder import saved_group
from instruct_lit.core.data.example import Example
from instruct_lit.core.data.template import Template
from instruct_lit.core.data.tokenizer import GPT2Tokenizer
from instruct_lit.core.model.gpt import GPT
from instruct_lit.datasets.quality import (
    Base,
    Diversity,
    InstructionDifficulty,
    JudgeScore,
    Perplexity,
    QualityFilter,
    ScoreFilter,
    farthest_first,
)
from instruct_lit.errors import ConfigError, JudgeError
from instruct_lit.evaluation.losses import response_losses
from tests.configs import composed

TURN = "Q: {{ instruction }}\nA: {{ response }}"
SHORT = Template("short", TURN, f"\n{TURN}")


@pytest.fixture
def base(tiny_model: GPT, tokenizer: GPT2Tokenizer, tmp_path: Path) -> Base:
    return Base("tiny", lambda: tiny_model, response_losses, SHORT, tokenizer, 40, tmp_path)


def kept(filter: QualityFilter, base: Base, examples: Sequence[Example]) -> list[bool]:
    filter.base = base
    return [is_kept for _, is_kept in filter.decide(examples)]


def loss_by_hand(model: GPT, context: list[int], answer: list[int]) -> float:
    ids = torch.tensor([*context, *answer])
    with torch.no_grad():
        logits = model.hidden_states(ids[None, :-1])[0] @ model.head_weight.T
    return float(F.cross_entropy(logits[len(context) - 1 :], ids[len(context) :]))


def test_scores_are_those_of_the_last_response(tiny_model: GPT, tokenizer: GPT2Tokenizer, base: Base) -> None:
    example = Example("and then?", "It ends.", history=(("Tell a tale.", "Once."),))
    too_long = Example("many " * 40, "words")
    prompt, answer = SHORT.prompt_ids(example, tokenizer), [*tokenizer.encode("It ends."), tokenizer.eot_id]
    conditioned = loss_by_hand(tiny_model, prompt, answer)
    alone = loss_by_hand(tiny_model, [tokenizer.eot_id], answer)
    for filter, wanted in ((Perplexity(), math.exp(conditioned)), (InstructionDifficulty(), conditioned / alone)):
        filter.base = base
        assert filter.scores([too_long, example]) == [None, pytest.approx(wanted, rel=1e-4)]


class Words(ScoreFilter):
    name = "words"

    def scores(self, examples: Sequence[Example]) -> list[float | None]:
        return [len(e.output.split()) or None for e in examples]


def test_bounds_percentiles_and_examples_without_a_score(base: Base) -> None:
    examples = [Example(f"q{n}", "word " * n) for n in range(11)]  # the first has none
    low = Words(min=3, max=8)
    assert kept(low, base, examples) == [True, *(3 <= n <= 8 for n in range(1, 11))]
    assert low.explanation[0] == (
        "words: 7 of 11 kept; percentiles of the score 1 (0 %), 1.45 (5 %), 5.5 (50 %), 9.55 (95 %), 10 (100 %); those "
        "kept have 3 to 8; 1 without a score are kept"
    )
    assert low.explanation[1:] == [f"  dropped, {n}: 'q{n}'" for n in (1, 2, 9, 10)]
    half = Words(max=9, percentiles=[50, 100])  # of those within the bounds
    assert kept(half, base, examples) == [True, *(5 <= n <= 9 for n in range(1, 11))]
    assert all(kept(Words(), base, examples)) and kept(Words(min=99), base, examples)[:2] == [True, False]
    for wrong in ({"min": 3, "max": 2}, {"percentiles": [60, 40]}, {"percentiles": [5]}, {"percentiles": [-1, 5]}):
        with pytest.raises(ConfigError, match=r"data.filters.words: min=.*two percentiles from 0 to 100"):
            Words(**wrong)


def test_scores_are_cached_by_examples_model_and_template(base: Base, tmp_path: Path) -> None:
    examples = [Example("a", "b"), Example("c", "d")]
    first = Perplexity(max=1e9)
    assert kept(first, base, examples) == [True, True]

    def refuse() -> GPT:
        raise AssertionError("the model is opened again")

    assert kept(Perplexity(max=0), Base(**vars(base) | {"open": refuse}), examples) == [False, False]
    for changed in ({"identity": "other"}, {"template": Template("t", "{{ instruction }}{{ response }}")}):
        with pytest.raises(AssertionError):
            kept(Perplexity(), Base(**vars(base) | {"open": refuse} | changed), examples)
    with pytest.raises(AssertionError):
        kept(Perplexity(), Base(**vars(base) | {"open": refuse}), examples[:1])
    other = Perplexity(max=1e9)
    other.base = Base(**vars(base) | {"identity": "other"})
    assert first.fingerprint() != other.fingerprint() and len(list((tmp_path / "quality").iterdir())) == 1


def test_what_is_kept_covers_the_set(base: Base) -> None:
    rows = np.array([[1, 0], [0.9, 0.1], [0, 1], [0.1, 0.9], [-1, -1]], dtype=np.float32)
    order, distances = farthest_first(rows, 5)
    assert {order[n] // 2 for n in range(3)} == {0, 1, 2} and distances[1:] == sorted(distances[1:], reverse=True)
    texts = ["one two three", "die Katze schläft", "0 0 0 0 0 0"]
    examples = [Example(text + mark, text) for mark in ("", ".", "!") for text in texts]
    three = Diversity(n=3)
    assert {n % 3 for n, is_kept in enumerate(kept(three, base, examples)) if is_kept} == {0, 1, 2}
    assert "3 of 9 kept; every other one is within a cosine distance of" in three.explanation[0]
    assert sum(kept(Diversity(share=0.5), base, examples)) == 4 and all(kept(Diversity(n=99), base, examples))
    for wrong in ({}, {"n": 1, "share": 0.5}, {"n": 0}, {"share": 1.5}):
        with pytest.raises(ConfigError, match="data.filters.diversity: .*give n of at least 1, or a share up to 1"):
            Diversity(**wrong)


def test_a_judge_scores_the_records_own_response(base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(name: str, settings: object, rows: list[dict]) -> list[float | None]:
        assert (name, settings, [row["output"] for row in rows]) == ("ollama", {"model": "m"}, ["", "", ""])
        return [{"good": 90, "bad": 10}.get(row["response"]) for row in rows]

    filter = JudgeScore("ollama", {"model": "m"}, min=50)
    filter.ask = ask
    assert kept(filter, base, [Example("q", text) for text in ("good", "bad", "unread")]) == [True, False, True]
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    for given, message in (
        ({"judge": "scores"}, r"data.filters.judge.judge=scores: allowed are local, ollama, openai"),
        ({"judge": "openai"}, r"data.filters.judge.settings: judge.api_key_env=OPENAI_API_KEY: no such environment"),
        ({"judge": "ollama", "settings": {"modle": "m"}}, r"data.filters.judge.settings: .*modle"),
    ):
        chain = filters_of(OmegaConf.create({"judge": given}), lambda: base)
        assert chain is not None
        with pytest.raises((ConfigError, JudgeError), match=message):
            list(chain([Example("q", "a")]))


def test_where_filters_by_quality_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("data: {filters: {judge: {judge: openai}}}\n")
    with pytest.raises(ConfigError, match="data.filters.judge: an endpoint that a run folder names is never asked"):
        saved_group(tmp_path, "data", "cache")
    stream = composed(
        "train", "data=files", f"data.path={Path(__file__)}", "data.streaming=true", "+data.filters={ifd: {max: 1}}"
    )
    with pytest.raises(
        ConfigError, match="data.filters.ifd=.*: it compares all examples, which a stream does not have"
    ):
        check_command("train", stream)
