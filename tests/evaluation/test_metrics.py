"""Each metric by hand, and the responses of a known model."""

import json
import random
import time
from pathlib import Path

import pytest

from instruct_lit.errors import ConfigError
from instruct_lit.evaluation.metrics import (
    METRICS,
    WITHOUT_EXTRA,
    applicable,
    check_metrics,
    comparable,
    higher_is_better,
    normalised,
    score,
)


def value(metric: str, response: str, output: str = "", **fields: str) -> float:
    return METRICS[metric]({"instruction": "", "input": "", "output": output, "response": response, **fields})


@pytest.mark.parametrize(
    ("metric", "response", "output", "expected"),
    [
        ("exact_match", " cat\n", "cat", 1),
        ("exact_match", "Cat", "cat", 0),
        ("exact_match_normalised", "The  Cat!", "a cat", 1),
        ("exact_match_normalised", "theme", "me", 0),
        ("token_f1", "the red cat", "cat black", 0.5),
        ("token_f1", "cat cat dog", "cat", 0.5),
        ("token_f1", "", "the", 1),
        ("token_f1", "x", "", 0),
        ("token_f1", "你好，世界", "你好世界", 8 / 9),
        ("token_f1", "naïve café", "café", 2 / 3),
        ("empty", " \n", "x", 1),
        ("distinct_2", "a b a b a", "x", 0.5),
        ("distinct_2", "one", "x", 1),
        ("distinct_2", "好的好的好", "x", 0.5),
        ("looping", "well, I see I see I see ", "x", 1),
        ("looping", "I see what I see", "x", 0),
        ("looping", "I see I see I see ", "x", 1),
        ("looping", "x. I see. I see. I see.\n", "x", 1),
        ("looping", "no no no", "x", 0),
        ("length_ratio", "abcd", "ab", 2),
        ("length_ratio", "abcd", "", 4),
    ],
)
def test_measures_by_hand(metric: str, response: str, output: str, expected: float) -> None:
    assert value(metric, response, output) == pytest.approx(expected)


def test_measures_that_look_at_more_than_the_answer() -> None:
    assert value("ended", "x", finish_reason="stop") == 1 and value("ended", "x", finish_reason="length") == 0
    assert value("copied_prompt", "Say it.", "it", instruction="say it") == 1
    assert value("copied_prompt", "A cat", "a cat", input="a cat") == 0  # copying was the task
    assert value("copied_prompt", "", "x") == 0


def test_rouge_l_and_chrf_by_definition() -> None:
    pytest.importorskip("sacrebleu")
    assert value("rouge_l", "Привет, мир", "привет мир") == 1
    assert value("rouge_l", "日本語", "日本語です") == pytest.approx(0.75)
    # Longest common subsequence "the cat sat": 3 of 4 words and 3 of 5, so F = 2/3.
    assert value("rouge_l", "the cat then sat", "the black cat sat down") == pytest.approx(2 / 3)
    assert value("chrf", "same text", "same text") == pytest.approx(1) and value("chrf", "abc", "xyz") == 0
    assert value("rouge_l", "", "") == value("rouge_l", "👍", "👍") == value("chrf", "", "") == 0


def test_rouge_l_is_that_of_rouge_score() -> None:
    library = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rougeL"])
    draw = random.Random(0)
    for _ in range(300):
        texts = ["".join(draw.choices("ab ,.1-'\n", k=draw.randrange(60))) for _ in range(2)]
        expected = library.score(*texts)["rougeL"].fmeasure
        assert value("rouge_l", texts[1], texts[0]) == pytest.approx(expected, abs=1e-12), texts


def test_rouge_l_of_long_texts_is_quick() -> None:
    """A table of all pairs of these words took minutes."""
    draw, begin = random.Random(0), time.monotonic()
    words = [" ".join(str(draw.randrange(1000)) for _ in range(20_000)) for _ in range(2)]
    assert 0 < value("rouge_l", *words) < 0.2 and time.monotonic() - begin < 5


def test_normalising() -> None:
    assert normalised(" An  apple, a day: THE end. ") == "apple day end"


def test_names_are_checked_and_have_a_direction() -> None:
    check_metrics(list(WITHOUT_EXTRA))
    with pytest.raises(ConfigError, match="metrics=bleurt: allowed are exact_match, "):
        check_metrics(["bleurt"])
    for wanted, names in {
        True: "token_f1 val/checks judge tokens_per_s benchmark/arc_easy benchmark/any_loss",
        False: "looping val/empty test/loss val/loss/book test/loss/judge val/response_loss word_perplexity bits_per_byte general/loss_change nats "
        "edit_distance ter training_s seconds peak_memory_bytes benchmark/crows_pairs/likelihood_diff",
        None: "length_ratio val/thought_words n_steps parameter lossy",
    }.items():
        assert {name: higher_is_better(name) for name in names.split()} == dict.fromkeys(names.split(), wanted)


def test_how_answers_ended_is_counted_where_all_tell() -> None:
    names, rows = ["ended", "empty"], [{"finish_reason": "stop"}, {"finish_reason": "length"}]
    assert applicable(names, rows) == names and applicable(names, [*rows, {}]) == ["empty"]


def test_metrics_against_a_reference_need_one() -> None:
    names = ["exact_match", "rouge_l", "length_ratio", "distinct_2"]
    assert applicable(names, [{"output": ""}, {"output": "a"}]) == names
    assert applicable(names, [{"output": ""}] * 2) == ["distinct_2"]
    with pytest.raises(
        ConfigError, match=r"metrics=\[chrf\]: there is no example .* count \(wanted answers, .*; add empty"
    ):
        comparable(["chrf"], [({"output": "", "response": "a"},)])


def test_a_metric_is_compared_where_it_is_defined_for_all() -> None:
    plain, thinking = ({"output": "a", "response": text} for text in ("a", "<think>b</think>a"))
    assert comparable(["thought_words", "empty", "ended"], [(plain, thinking)]) == ["empty"]
    assert comparable(["thought_words"], [(plain, thinking), (thinking, thinking)]) == ["thought_words"]
    with pytest.raises(
        ConfigError, match=r"metrics=\[checks, thought_words\]: there is no example whose responses all"
    ):
        comparable(["checks", "thought_words"], [(plain, thinking)])


def test_a_metric_whose_library_is_absent_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from instruct_lit.evaluation import metrics

    monkeypatch.setattr(metrics, "_chrf", metrics._chrf.__wrapped__)
    monkeypatch.setitem(__import__("sys").modules, "sacrebleu.metrics", None)
    with pytest.raises(ConfigError, match=r"metrics=chrf: needs sacrebleu; pip install -e '.\[evaluate\]'"):
        check_metrics(["chrf"])


def test_the_answers_of_a_known_model(shared_data: Path) -> None:
    """110 answers of a fine-tuned GPT-2 355M give what docs/evaluating.md says of them."""
    pytest.importorskip("sacrebleu")
    rows = json.loads((shared_data / "judge" / "instruction-data-with-response.json").read_text())
    for row in rows:
        row["response"] = row.pop("model_response")
    page = (Path(__file__).resolve().parents[2] / "docs" / "evaluating.md").read_text(encoding="utf-8")
    names = {
        "exact match": "exact_match", "exact match, normalised": "exact_match_normalised", "token F1": "token_f1",
        "ROUGE-L": "rouge_l", "chrF": "chrf", "empty": "empty", "distinct-2": "distinct_2", "looping": "looping",
        "copied prompt": "copied_prompt", "length ratio": "length_ratio",
    }  # fmt: skip
    found = score(rows, list(names.values()), seed=123)
    for title, name in names.items():
        value = found[name]
        assert f"| {title} | {value['mean']:.3f} | {value['low']:.3f} to {value['high']:.3f} |" in page, (name, value)
    assert found["exact_match"]["n"] == 110
