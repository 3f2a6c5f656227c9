"""The provenance of a run, and the differences of two."""

import dataclasses
import hashlib
import importlib.metadata
import json
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from instruct_lit.config.provenance import (
    answer_key,
    code_state,
    differing,
    provenance,
    read_provenance,
    weights_sha256,
    write_provenance,
)
from instruct_lit.core.bundle import open_model
from instruct_lit.core.data.template import Template
from instruct_lit.core.data.tokenizer import GPT2Tokenizer
from instruct_lit.core.model.gpt import GPT
from instruct_lit.errors import ConfigError


def origin(folder: Path, **changes: object) -> dict:
    (folder / "split.json").write_text("{}")
    trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("cpu")), precision="32-true")
    run: Any = SimpleNamespace(about={"data": {"name": "demo", "fingerprint": "f"}}, run_dir=folder, trainer=trainer)
    found = provenance(["python", "-m", "instruct_lit.train", "seed=2"], [("seed", 123, 2)], run, {"seed": 2})
    return {**found, **changes}


def test_it_is_complete_and_reads_back(tmp_path: Path) -> None:
    found = origin(tmp_path)
    weights = torch.nn.Linear(2, 2).state_dict()
    write_provenance(tmp_path, found, weights)
    assert found["weights_sha256"] == weights_sha256(weights)
    assert read_provenance(tmp_path) == found
    assert found["changed"] == {"seed": {"default": 123, "value": 2}}
    assert found["split_sha256"] == hashlib.sha256(b"{}").hexdigest()
    assert found["versions"]["torch"] == importlib.metadata.version("torch") and found["device"]["n_threads"] >= 1


def test_the_sum_of_the_weights_changes_with_any_of_them() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.LayerNorm(3))
    before = weights_sha256(model.state_dict())
    assert before == weights_sha256(model.state_dict())
    with torch.no_grad():
        model[1].bias[2] += 1e-7
    assert weights_sha256(model.state_dict()) != before


def test_a_cache_belongs_to_weights_configuration_and_tokenizer(
    tiny_model: GPT, tokenizer: GPT2Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = answer_key(tiny_model, tokenizer)
    assert before == answer_key(tiny_model, tokenizer) and len(before) == 16
    other: Any = SimpleNamespace(fingerprint="other")
    assert answer_key(tiny_model, other) != before
    monkeypatch.setattr(tiny_model, "config", dataclasses.replace(tiny_model.config, context_length=7))
    assert answer_key(tiny_model, tokenizer) != before  # prompts are cut elsewhere


def test_the_rotary_base_is_part_of_a_cache(llama_directory: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    keys = set()
    for base in (10_000.0, 500_000.0):
        shutil.copytree(llama_directory, tmp_path / str(base))
        config = json.loads((llama_directory / "config.json").read_text())
        config["rope_parameters"] = {**config["rope_parameters"], "rope_theta": base}
        (tmp_path / str(base) / "config.json").write_text(json.dumps(config))
        opened = open_model(tmp_path / str(base), Template("bare", "{{ instruction }}{{ response }}"))
        keys.add(answer_key(opened.model, opened.tokenizer))
    assert len(keys) == 2  # of the same weights


def test_the_state_of_a_checkout(tmp_path: Path) -> None:
    assert code_state(tmp_path) == {}
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    (tmp_path / "a.py").write_text("1\n")
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *arguments], check=True)
    state = code_state(tmp_path)
    assert len(state["commit"]) == 40 and state["dirty"] is False
    (tmp_path / "a.py").write_text("2\n")
    assert code_state(tmp_path) == {**state, "dirty": True}


def test_the_differences_of_two_runs(tmp_path: Path) -> None:
    there = origin(tmp_path)
    here = {**there, "command": ["other"], "data": {"name": "demo", "fingerprint": "g"}, "seeds": {"seed": 3}}
    assert differing(there, here) == [("data.fingerprint", "f", "g"), ("seeds.seed", 2, 3)]


def test_a_folder_without_it_and_a_damaged_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no provenance.json; give a run folder of python -m instruct_lit.train"):
        read_provenance(tmp_path)
    (tmp_path / "provenance.json").write_text("{")
    with pytest.raises(ConfigError, match=r"provenance.json: damaged \(JSONDecodeError"):
        read_provenance(tmp_path)
    (tmp_path / "provenance.json").write_text("[" * 100_000)
    with pytest.raises(ConfigError, match=r"provenance.json: damaged \(RecursionError"):
        read_provenance(tmp_path)


def test_it_is_plain_json(tmp_path: Path) -> None:
    write_provenance(tmp_path, origin(tmp_path), {})
    assert json.loads((tmp_path / "provenance.json").read_text())["seeds"] == {"seed": 2}
