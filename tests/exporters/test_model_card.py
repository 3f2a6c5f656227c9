"""The model card names what is known, and says so of what is not."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard, ModelCardData, metadata_load

from instruct_lit.core.bundle import OpenedModel
from instruct_lit.core.data.template import Template
from instruct_lit.core.data.tokenizer import GPT2Tokenizer
from instruct_lit.core.generation.responses import write_jsonl
from instruct_lit.exporters.model_card import CardFacts, published, without_local_paths, write_card

TEMPLATE = Template("short", "Q: {{ instruction }}\nA: {{ response }}")


def write(folder: Path, facts: CardFacts, about: Any = {}, rows: Any = (), library: str = "gguf") -> None:  # noqa: B006
    """The card of a model that a run folder holds."""
    write_jsonl(folder / "responses.jsonl", rows)
    model: Any = SimpleNamespace(config=SimpleNamespace(context_length=64), n_parameters=1_500_000)
    write_card(
        folder / "README.md",
        facts,
        OpenedModel(folder / "bundle", model, GPT2Tokenizer(), TEMPLATE, {}, about),
        library,
    )


def test_a_run_with_answers(tmp_path: Path) -> None:
    about = {
        "version": "0.1.0", "command": "python -m instruct_lit.train data=book",
        "data": {"name": "a, b: {c}", "licence": "Apache-2.0", "fingerprint": "abc"},
        "metrics": {"test/loss": 0.51234, "test/exact_match": 0.75, "seconds": 3,
                    "base/test/loss": 4.5, "base/test/exact_match": 0.0, "n_test": 4},
    }  # fmt: skip
    rows = [{"instruction": "i", "output": "a", "response": r, "finish_reason": "stop"} for r in ("a", "a", "b", "a")]
    write(tmp_path, CardFacts("lr: [1, 2]"), about, rows)
    text = (tmp_path / "README.md").read_text()
    front = yaml.safe_load(text.split("---")[1])
    measured = {m["type"]: m["value"] for m in front["model-index"][0]["results"][0]["metrics"]}
    (found,) = front["model-index"]
    assert found["name"] == "lr: [1, 2]"  # names of folders and data may be anything
    assert found["results"][0]["dataset"] == {"name": "a, b: {c}", "type": "a, b: {c}", "split": "test"}
    assert measured["exact_match"] == 0.75 and measured["loss"] == 0.5123 and not [m for m in measured if "base" in m]
    for piece in (
        "of 1.5 million parameters with a context of 64 tokens",
        "Licence of the data: Apache-2.0.",
        "Q: {instruction}\nA: {response}",
        "| test/loss | 0.5123 | 4.5000 |",
        "| exact_match | 0.750 | 0.194 – 0.994 |",
        "    python -m instruct_lit.train data=book",
        "Known limits",
    ):
        assert piece in text
    assert "seconds" not in text and front["library_name"] == "gguf"


def test_a_directory_that_says_nothing_of_itself(tmp_path: Path) -> None:
    write(tmp_path, CardFacts("mine"))
    text = (tmp_path / "README.md").read_text()
    assert "model-index" not in text and "Not recorded." in text and "The command is not recorded." in text


ABOUT = {
    "command": "python -m instruct_lit.train data=files data.path=/home/ann/private/a.json model.path=~/models/x y=C:\\Users\\ann\\b.csv",
    "data": {"name": "mine", "repo": "yahma/alpaca-cleaned", "fingerprint": "abc"},
    "base": {"id": "HuggingFaceTB/SmolLM2-135M-Instruct", "licence": "apache-2.0"},
    "metrics": {"test/loss": 0.5, "base/test/loss": 4.5, "n_test": 2},
}  # fmt: skip


def test_the_hub_reads_the_metadata(tmp_path: Path) -> None:
    rows = [{"instruction": "i", "output": "a", "response": r, "finish_reason": "stop"} for r in ("a", "b")]
    write(tmp_path, CardFacts("m", languages=["en"]), ABOUT, rows, "transformers")
    found = metadata_load(tmp_path / "README.md")
    assert found is not None
    card = ModelCardData(**found, ignore_metadata_errors=False)
    assert (card.license, card.base_model, card.library_name) == (
        "apache-2.0", "HuggingFaceTB/SmolLM2-135M-Instruct", "transformers",
    )  # fmt: skip
    assert found["base_model_relation"] == "finetune" and card.datasets == ["yahma/alpaca-cleaned"]
    assert card.language == ["en"] and card.pipeline_tag == "text-generation" and "instruct-lit" in card.tags
    assert card.eval_results is not None
    results = {result.metric_type: result for result in card.eval_results}
    assert results["loss"].metric_value == 0.5 and results["loss"].metric_args == {"n": 2}
    assert results["exact_match"].metric_value == 0.5
    assert results["exact_match"].metric_args == {"n": 2, "interval_95": [0.0126, 0.9874]}
    assert 4.5 not in [result.metric_value for result in card.eval_results]
    text = (tmp_path / "README.md").read_text()
    assert "ann" not in text and "data.path=a.json model.path=x y=b.csv" in text


def test_what_was_verified_and_what_quantising_has_changed(tmp_path: Path) -> None:
    change = {"mean": 0.0123, "low": 0.001, "high": 0.02, "n": 100}
    verified = {"readers": ["llama-cpp-python"], "n": 100, "change": change}
    facts = CardFacts("m", relation="quantized", verified=verified)
    write(tmp_path, facts, ABOUT)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.base_model_relation == "quantized" and card.data.eval_results is not None
    (found,) = [result for result in card.data.eval_results if result.metric_type == "loss_change"]
    assert (found.metric_value, found.metric_args) == (0.0123, {"n": 100, "interval_95": [0.001, 0.02]})
    assert "their loss is +0.0123 from that of the weights\nbefore (95 % interval +0.0010 to +0.0200)" in card.text
    facts = CardFacts("m", verified={"readers": ["instruct-lit", "transformers"], "n": 8})
    write(tmp_path, facts, ABOUT, library="transformers")
    assert (
        "a fresh process opened it (instruct-lit, transformers): the loss of 8" in (tmp_path / "README.md").read_text()
    )


def test_what_is_given_replaces_what_was_recorded_and_the_unknown_is_unknown(tmp_path: Path) -> None:
    for facts, about, expected in (
        (CardFacts("m", "mit", "a/b"), ABOUT, ("mit", "a/b")),
        (CardFacts("m"), {}, ("unknown", None)),
    ):
        write(tmp_path, facts, about)
        found = metadata_load(tmp_path / "README.md")
        assert found is not None and (found["license"], found.get("base_model")) == expected
        assert ("base_model_relation" in found) == (expected[1] is not None)


@pytest.mark.parametrize(
    ("text", "public"),
    [
        ("model.path=/home/me/models/gpt2", "model.path=gpt2"), ("data.path=[/a/b.json,/c/d.json]", "data.path=[b.json,d.json]"),
        ("'/home/ann/x y'", "'x y'"), ("file:///home/ann/z.csv", "z.csv"), ("see https://example.org/a/b", "see https://example.org/a/b"),
        ("model.path=owner/name", "model.path=owner/name"), ("runs/a/b", "runs/a/b"), ("a / b", "a … b"), ("1/2", "1/2"),
    ],
)  # fmt: skip
def test_paths_of_this_machine_are_reduced_to_their_last_name(text: str, public: str) -> None:
    assert without_local_paths(text) == public
    assert published({"a": [text], "template": {"text": "/x/y"}}) == {"a": [public], "template": {"text": "/x/y"}}
