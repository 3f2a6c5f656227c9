"""Every key is documented, and its rules hold."""

import os
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from instruct_lit.config.check_commands import check_command
from instruct_lit.config.schema import COMMANDS
from instruct_lit.config.schema.commands import ChatConfig
from instruct_lit.config.schema.groups import GenerationConfig, ModelConfig
from instruct_lit.config.schema.options import check_values, keys_of, runs_in
from instruct_lit.errors import ConfigError
from tests.configs import composed


@pytest.mark.parametrize("command", COMMANDS)
def test_every_key_is_documented(command: str) -> None:
    for key in keys_of(COMMANDS[command]):
        assert key.rules.doc.endswith((".", "…")) and len(key.rules.doc) < 180, key.name
        if key.default not in (None, "???") and key.rules.choices:
            assert key.default in key.rules.choices, key.name
    assert (COMMANDS[command].__doc__ or "").strip().endswith("."), command


def test_keys_have_their_groups_before_them() -> None:
    found = {key.name: key for key in keys_of(COMMANDS["train"])}
    assert list(found)[:2] == ["model", "model.name"] and found["model"].group is ModelConfig
    assert (found["data.max_length"].type_name, found["data.max_length"].default) == ("int or null", None)
    assert found["generation.stop"].type_name == "list[str]" and found["generation.stop"].default == []
    assert found["fit"].type_name == "bool"
    assert {key.name: key.type_name for key in keys_of(COMMANDS["chat"])}["template"] == "TemplateConfig or null"


def test_values_against_their_rules() -> None:
    config = OmegaConf.structured(ModelConfig(name="x", kind="bert", n_layers=0, dropout=1.0, context_length=None))
    assert check_values(config, "model.") == [
        "model.kind=bert: allowed are gpt2, hf",
        "model.n_layers=0: must be at least 1",
        "model.dropout=1.0: must be below 1",
    ]
    assert check_values(OmegaConf.structured(GenerationConfig)) == []
    assert check_values(OmegaConf.create({"kind": "without a schema"})) == []


def test_a_folder_of_runs_is_answered_with_the_runs_in_it(tmp_path: Path) -> None:
    for number, name in enumerate(
        ("train/2026-01-01/09-00-00", "train/2026-01-02/10-00-00", "multirun/2026-01-01/1/0")
    ):
        (tmp_path / name / "bundle").mkdir(parents=True)
        os.utime(tmp_path / name / "bundle", (number, number))
    folder, newest = f"run={tmp_path}", f"run={tmp_path}/multirun/2026-01-01/1/0"
    more = f", {tmp_path}/train/2026-01-02/10-00-00, …"
    config = OmegaConf.structured(ChatConfig(run=str(tmp_path)))
    assert check_values(config) == [f"{folder}: a folder of 3 runs; give one of them: {newest}{more}"]
    config.run = f"{tmp_path}/multirun/2026-01-01/1/0"
    assert check_values(config) == []
    (tmp_path / "config.json").write_text("{}")  # a model that has runs inside
    assert runs_in(tmp_path) == []


def test_files_without_a_path_are_answered_with_what_to_type() -> None:
    with pytest.raises(ConfigError, match=r"^data\.path is missing; data=files data\.path=<file or folder>$"):
        check_command("train", composed("train", "data=files"))
