"""The peek command as a person starts it."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hydra.core.hydra_config import HydraConfig

from instruct_lit.accel.estimate import counting
from instruct_lit.config.check_commands import check_command
from instruct_lit.config.counted_model import without_weights
from instruct_lit.core.bundle import OpenedModel, open_model
from instruct_lit.core.data.encode import Encoder
from instruct_lit.core.model.gpt import GPT
from instruct_lit.datasets.demo import DemoSource
from instruct_lit.datasets.inspect_example import target_losses
from instruct_lit.datasets.profile import training_batches
from instruct_lit.errors import ConfigError
from instruct_lit.peek import limited_model, peek
from tests.configs import composed


def test_the_profile_of_the_data(command: Callable, small: tuple[str, ...], tmp_path: Path) -> None:
    keep = [o for o in small if o.startswith(("data.", "model."))]
    text = command("peek", *keep, cwd=tmp_path).stdout
    assert "40 train, 10 val, 10 test" in text
    for line in (
        "examples ",
        "supervised ",
        "end-of-text ",
        "prompt tokens",
        "response tokens",
        "positions per token",
        "memory ",
        "time ",
    ):
        assert line in text, line
    assert re.search(r"packed +0\.\d\d .*chosen", text) and "warning: 10 validation examples are too few" in text
    assert max(map(len, text.splitlines())) <= 80
    assert list(tmp_path.iterdir()) == []  # looking leaves nothing behind


@pytest.mark.slow
def test_a_stream_is_looked_at_by_its_first_examples(command: Callable, small: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    for shard in range(3):
        lines = [json.dumps({"instruction": f"Say {shard} {n}.", "output": f"{n} " * (1 + n % 5)}) for n in range(20)]
        (tmp_path / "set" / f"part-{shard}.jsonl").write_text("\n".join([*lines[:10], lines[0], *lines[10:]]))
    keep = [o for o in small if o.startswith("model.")]
    stream = [*keep, "data=files", "data.path=set", "data.streaming=true", "n_streamed=30", "data.max_length=96"]
    text = " ".join(command("peek", *stream, cwd=tmp_path).stdout.split())
    assert "only the first 29 examples of the stream, in file order (n_streamed=30)" in text
    assert "exact duplicates, dropped" in text and "s per batch" in text and "per epoch" not in text
    assert "validation examples" not in text
    text = command("peek", *stream, "index=28", cwd=tmp_path).stdout
    assert "data files" in text and "example 28, in train" in text and "instruction: Say 1 8." in text


def test_two_records_are_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(HydraConfig, "get", lambda: SimpleNamespace(overrides=SimpleNamespace(task=[])))
    path = tmp_path / "two.jsonl"
    path.write_text("".join(json.dumps({"instruction": f"Say {n}.", "output": "Yes."}) + "\n" for n in range(2)))
    peek(composed("peek", "data=files", f"data.path={path}", "estimate=false", f"paths.cache={tmp_path}"))
    text = " ".join(capsys.readouterr().out.split())
    assert (
        "of 2 examples none is left for test; here all are shown as train" in text and "2 train, 0 val, 0 test" in text
    )


@pytest.mark.slow
def test_one_example_with_the_losses_of_a_run(small_run: Path, command: Callable, tmp_path: Path) -> None:
    split = json.loads((small_run / "split.json").read_text())
    text = command("peek", f"run={small_run}", f"index={split['val'][0]}", cwd=tmp_path).stdout
    assert f"example {split['val'][0]}, in val" in text
    assert "mean loss of the supervised targets" in text and "### Response:" in text
    profile = command("peek", f"run={small_run}", "estimate=false", cwd=tmp_path).stdout
    assert "40 train, 10 val, 10 test" in profile and "memory" not in profile


def test_the_losses_are_those_of_validation(small_run: Path) -> None:
    """The mean over the supervised targets of the validation examples is the run's own val/loss."""
    opened = open_model(small_run)
    split = json.loads((small_run / "split.json").read_text())
    examples = list(DemoSource(60))
    losses: list[float] = []
    for index in split["val"]:
        (pair,) = Encoder(opened.template, opened.tokenizer, 96).encode([examples[index]])
        losses += target_losses(opened.model, pair[1].ids)[pair[1].n_prompt - 1 :]
    expected = json.loads((small_run / "metrics.json").read_text())["val/loss"]
    assert sum(losses) / len(losses) == pytest.approx(expected, rel=5e-3)  # the run computes in bf16 where that is fast


def test_what_is_estimated_is_the_model_that_was_opened(tiny_model: GPT) -> None:
    """And not the one of the defaults, where a directory has no configuration of a run beside it."""
    config = composed("peek")
    opened = OpenedModel(Path("bundle"), tiny_model, None, None, {}, {})  # type: ignore[arg-type]
    with counting(on_gpu=False):
        assert without_weights(config, opened).config == tiny_model.config != without_weights(config).config


@pytest.mark.slow
def test_what_an_adapter_is_estimated_on_has_the_precision_of_the_run(llama_directory: Path) -> None:
    config = composed("peek", "model=hf", f"model.path={llama_directory}", "model.dtype=bfloat16", "adapter=lora")
    half = {True: torch.float32, False: torch.bfloat16}
    for config.adapter.kind, expected in (("lora", half), ("dora", half), ("none", {True: torch.float32})):
        with counting(on_gpu=False):
            made = without_weights(config)
        assert {p.requires_grad: p.dtype for p in made.parameters()} == expected


@pytest.mark.slow
def test_a_profile_is_of_the_layout_that_a_run_would_choose(tmp_path: Path) -> None:
    """Without weights: experts, whose products torch sizes in bf16 alone, and an attention that is not packed."""
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 99, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "num_experts": 4}
    for name in ("gpt_oss", "mixtral"):
        transformers.CONFIG_MAPPING[name](**sizes).save_pretrained(tmp_path / name)
    config = composed("peek", "model=hf", f"model.path={tmp_path / 'gpt_oss'}")
    limited = limited_model(config)
    assert limited is not None and limited.no_layouts == "it adds sinks to its attention scores"
    config.model.path = str(tmp_path / "mixtral")
    assert limited_model(config) is None
    with counting(on_gpu=False):
        model = without_weights(config)
        model.logits(model.hidden_states(torch.ones(1, 7, dtype=torch.long))).sum().backward()
    config.index = 3
    assert limited_model(config) is None


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["run=nowhere"], "run=nowhere: no such folder"),
        (["n_streamed=0"], "n_streamed=0: must be at least 1"),
        (["data=mixture", "data.sets={book: {}}", "data.streaming=true"], "data.streaming=true: a mixture cannot be"),
        (["split=all"], "split=all: allowed are train, val, test"),
        (["data=files", "data.path=nowhere.json"], "data.path=nowhere.json: no such file or folder"),
        (["data.on_long=cut"], "data.on_long=cut: allowed are truncate, truncate_left, drop, error"),
    ],
)
def test_impossible_values_are_named(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_command("peek", composed("peek", *overrides))
    assert message in str(caught.value)


def test_without_training_examples_there_are_no_batches() -> None:
    data = SimpleNamespace(examples_of=lambda split: (None, np.arange(0)), split_spec={"train": 0, "val": 0.5})
    with pytest.raises(ConfigError, match=r"data.split={'train': 0, 'val': 0.5}: no example for train"):
        training_batches(data, {})  # type: ignore[arg-type]


@pytest.mark.slow
def test_an_example_that_is_not_there(command: Callable, tmp_path: Path) -> None:
    done = command("peek", "index=60", "data.source.n_examples=60", cwd=tmp_path, status=2)
    assert "index=60: must be between 0 and 59" in done.stderr and "Traceback" not in done.stderr
