"""The models of a benchmark, in the forms in which they are asked."""

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from instruct_lit.config import benchmark_builders as builders
from instruct_lit.core.data.template import Template
from instruct_lit.core.data.tokenizer import GPT2Tokenizer
from instruct_lit.core.model.gpt import GPT
from instruct_lit.evaluation.remote_model import RemoteModel
from tests.configs import composed


def test_a_served_run_has_another_label_than_the_run(
    tiny_model: GPT, tokenizer: GPT2Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = Template("own", "{{ instruction }}{{ response }}")
    opened = SimpleNamespace(model=tiny_model, tokenizer=tokenizer, template=template, directory=tmp_path)
    monkeypatch.setattr(builders, "read_about", lambda _: {"kind": "gpt2"})
    monkeypatch.setattr(builders.build, "open_model", lambda *_, **__: opened)
    monkeypatch.setattr(builders, "remote_model_of", lambda config: RemoteModel(Any, label=config.endpoint.model))
    given = ["endpoint.url=http://h/v1", "benchmark.base=false", "benchmark.template=on", f"paths.cache={tmp_path}"]
    for model, labels in {"org/b": ["runs_b", "org_b"], "org/c": ["b", "c"]}.items():
        config = composed("benchmark", f"run={tmp_path / 'runs' / 'b'}", f"endpoint.model={model}", *given)
        assert [model.label for model in builders.evaluated_models(config)] == labels


def test_the_base_of_two_runs_is_asked_once_in_each_form(
    tiny_model: GPT, tokenizer: GPT2Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first run has a template of its own, the second the chat template, which its base knows too."""

    def opened(run: str, *_: Any, **__: Any) -> SimpleNamespace:
        model = copy.deepcopy(tiny_model)
        torch.nn.init.constant_(model.head_parameters[0], float(len(run)))
        template = Template("own" if run == "a" else "chat", "{{ instruction }}{{ response }}")
        return SimpleNamespace(model=model, tokenizer=tokenizer, template=template, directory=tmp_path)

    monkeypatch.setattr(builders, "read_about", lambda _: {"kind": "gpt2"})
    monkeypatch.setattr(builders.build, "open_model", opened)
    monkeypatch.setattr(builders.build, "base_of_run", lambda *_: copy.deepcopy(tiny_model))
    config = composed("benchmark", "run=[a,bb,ccc]", f"paths.cache={tmp_path}")
    found = [(model.label, model.mode) for model in builders.evaluated_models(config)]
    assert found == [
        *(("a", mode) for mode in ("on", "off")), ("a before", "off"),
        *(("bb", mode) for mode in ("on", "off")), ("bb before", "on"),
        *(("ccc", mode) for mode in ("on", "off")),
    ]  # fmt: skip
