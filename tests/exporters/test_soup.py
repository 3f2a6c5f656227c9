"""Soups: the average of weights, uniform and greedy, and what cannot be averaged."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from instruct_lit.config.soup_builders import runs_of
from instruct_lit.core.bundle import OpenedModel
from instruct_lit.core.data.template import Template
from instruct_lit.core.data.tokenizer import GPT2Tokenizer
from instruct_lit.core.model.causal import CausalLM
from instruct_lit.core.model.gpt import GPT, GPTConfig
from instruct_lit.errors import ConfigError
from instruct_lit.exporters.soup import make_soup

OWN = Template("own", "Do: {{ instruction }}\nAnswer: {{ response }}")


def part(value: float, d_model: int = 16, template: Template = OWN) -> Callable[[], OpenedModel]:
    """A model whose weights all have one value."""

    def open_it() -> OpenedModel:
        model = GPT(GPTConfig(context_length=8, d_model=d_model, n_layers=1, n_heads=2))
        for p in model.parameters():
            p.data.fill_(value)
        return OpenedModel(Path("run"), model, GPT2Tokenizer(), template, {}, {"data": {"name": "d"}})

    return open_it


def losses_of(model: CausalLM) -> dict[str, float]:
    """Lowest where the weights are 2."""
    value = float(model.head_weight.detach().flatten()[0])
    return {"val/response_loss": abs(value - 2), "test/response_loss": value}


def test_all_runs_join_a_uniform_soup() -> None:
    soup, table = make_soup({"a": part(1.0), "b": part(2.0), "c": part(6.0)}, losses_of, greedy=False)
    assert torch.equal(soup.model.head_weight, torch.full_like(soup.model.head_weight, 3.0))
    assert table["members"] == ["a", "b", "c"] and table["soup"] == {
        "val/response_loss": 1.0,
        "test/response_loss": 3.0,
    }
    assert table["losses"]["c"] == {"val/response_loss": 4.0, "test/response_loss": 6.0}
    assert soup.about["metrics"] == {"val/loss": 1.0, "test/loss": 3.0} and soup.about["soup"] == {
        "method": "uniform", "n_runs": 3, "n_members": 3,
    }  # fmt: skip


def test_a_run_joins_a_greedy_soup_if_the_validation_loss_does_not_rise() -> None:
    soup, table = make_soup({"a": part(1.0), "b": part(2.5), "c": part(9.0)}, losses_of, greedy=True)
    assert table["members"] == ["b", "a"] and table["soup"]["val/response_loss"] == 0.25
    assert float(soup.model.head_weight.detach()[0, 0]) == 1.75


@pytest.mark.parametrize(
    ("other", "what"),
    [
        (part(1.0, d_model=32), "weights"),
        (part(1.0, template=Template("t", "{{ instruction }}{{ response }}")), "template"),
    ],
)
def test_other_models_are_refused(other: Callable[[], OpenedModel], what: str) -> None:
    with pytest.raises(ConfigError, match=f"soup: b has other {what} than the first run; give runs of one base model"):
        make_soup({"a": part(1.0), "b": other}, losses_of, greedy=False)


def test_a_head_of_its_own_beside_a_tied_one_is_refused() -> None:
    def open_it(tied: bool) -> OpenedModel:
        model = torch.nn.ModuleDict({"embedding": torch.nn.Embedding(4, 2), "head": torch.nn.Linear(2, 4, bias=False)})
        if tied:
            model["head"].weight = model["embedding"].weight
        return replace(part(1.0)(), model=model)

    parts = {"a": partial(open_it, True), "b": partial(open_it, False)}
    with pytest.raises(ConfigError, match="soup: b has other weights than the first run; give runs of one base model"):
        make_soup(parts, lambda model: {"val/response_loss": 1.0}, greedy=False)


def test_the_folder_of_a_sweep_is_its_finished_trials(tmp_path: Path) -> None:
    for name in ("0", "2", "10"):
        (tmp_path / "sweep" / name / "bundle").mkdir(parents=True)
    (tmp_path / "sweep" / "3").mkdir()
    with pytest.raises(
        ConfigError, match=r"soup=\[…,.*sweep/0\]: no model there; give finished runs, or the folder of"
    ):
        runs_of([str(tmp_path / "sweep")])
    for bundle in (tmp_path / "sweep").glob("*/bundle"):
        (bundle / "config.json").touch()
    assert [Path(run).name for run in runs_of([str(tmp_path / "sweep")])] == ["0", "2", "10"]
    with pytest.raises(ConfigError, match=r"1 finished run; give at least two, or the folder of a sweep"):
        runs_of([str(tmp_path / "sweep" / "0")])
