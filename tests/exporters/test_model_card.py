"""The model card names what is known, and says so of what is not."""

from pathlib import Path

import yaml

from instruct_lit.core.data.template import Template
from instruct_lit.exporters.model_card import write_card

TEMPLATE = Template("short", "Q: {{ instruction }}\nA: {{ response }}")


def test_a_run_with_answers(tmp_path: Path) -> None:
    about = {
        "version": "0.1.0", "command": "python -m instruct_lit.train data=book",
        "data": {"name": "a, b: {c}", "licence": "Apache-2.0", "fingerprint": "abc"},
        "metrics": {"test/loss": 0.51234, "test/exact_match": 0.75, "seconds": 3},
    }  # fmt: skip
    rows = [{"instruction": "i", "output": "a", "response": r, "finish_reason": "stop"} for r in ("a", "a", "b", "a")]
    write_card(tmp_path / "README.md", "lr: [1, 2]", TEMPLATE, about, rows, 64, 1_500_000, "gguf")
    text = (tmp_path / "README.md").read_text()
    front = yaml.safe_load(text.split("---")[1])
    measured = {m["type"]: m["value"] for m in front["model-index"][0]["results"][0]["metrics"]}
    (found,) = front["model-index"]
    assert found["name"] == "lr: [1, 2]"  # names of folders and data may be anything
    assert found["results"][0]["dataset"] == {"name": "a, b: {c}", "type": "a, b: {c}", "split": "test"}
    assert measured["exact_match"] == 0.75 and measured["test/loss"] == 0.5123
    for piece in (
        "of 1.5 million parameters with a context of 64 tokens",
        "Licence of the data: Apache-2.0.",
        "Q: {instruction}\nA: {response}",
        "| exact_match | 0.750 | 0.194 – 0.994 |",
        "    python -m instruct_lit.train data=book",
        "Known limits",
    ):
        assert piece in text
    assert "seconds" not in text and front["library_name"] == "gguf"


def test_a_directory_that_says_nothing_of_itself(tmp_path: Path) -> None:
    write_card(tmp_path / "README.md", "mine", TEMPLATE, {}, [], 64, 1_500_000, "gguf")
    text = (tmp_path / "README.md").read_text()
    assert "model-index" not in text and "Not recorded." in text and "The command is not recorded." in text
