"""What an evaluation prints."""

import json
from pathlib import Path

import pytest

from instruct_lit.core.generation.sampling import SamplingSettings
from instruct_lit.reports.evaluation_page import pairwise_lines, print_leaks, subject


def test_leaks_are_printed_without_what_steers_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    item = {"kind": "exact", "similarity": 1.0, "text": "the cat \x1b[2J sat"}
    print_leaks({"n": 7, "n_rows": 9, "near": True, "items": [item] * 7})
    shown = capsys.readouterr().out
    assert "7 of 9 examples are in the training data or close to it (exact 7)" in shown
    assert "exact (1.00): the cat \\x1b[2J sat" in shown and "\x1b" not in shown
    assert "more, in evaluation.json" in shown


@pytest.mark.parametrize(("n", "shown"), [(3, "too few to say"), (12, "all equal")])
def test_a_win_rate_of_few_pairs_has_no_interval(n: int, shown: str) -> None:
    rate = {"mean": 2 / 3, "low": None, "high": None, "n": n}
    counts = {"wins": 1, "losses": 0, "turned": 0, "n_unparsed": 0, "n_verdicts": 6, "first_shown": None, "p": 0.5}
    first, second, *_ = pairwise_lines({"win_rate": rate, "length_controlled_win_rate": 0.5, **counts})
    assert first.startswith(f"A wins 66.7% ({shown}) of {n}; ") and second == "length-controlled win rate 50.0%"


def test_the_page_says_what_was_evaluated(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    about = {"template": {"name": "short", "text": "{{ instruction }}{{ response }}"}, "data": {"name": "book", "fingerprint": "abc"}}  # fmt: skip
    (tmp_path / "bundle" / "instruct_lit.json").write_text(json.dumps({**about, "base": {"id": "gpt2"}}))
    generation = {**vars(SamplingSettings(temperature=1.0, top_k=5)), "stop": []}
    found = {"run": str(tmp_path), "responses": None, "split": "test", "generation": generation}
    assert dict(subject(found)) == {
        "model": str(tmp_path), "base model": "gpt2", "fine-tuned on": "book (fingerprint abc)", "template": "short",
        "responses to": "the test split", "generation": "sampled, at most 256 new tokens, temperature=1.0, top_k=5",
    }  # fmt: skip
    assert subject({"run": None, "responses": "a.json"}) == [("responses", "a.json")]
