"""Every file of conf/ composes, and passes the checks that come before any work."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from instruct_lit.config.check_commands import check_command
from instruct_lit.config.check_machine import check_targets
from instruct_lit.config.compose import CONF
from instruct_lit.config.schema import COMMANDS
from tests.configs import composed

GROUPS = sorted(p.relative_to(CONF).with_suffix("") for p in CONF.glob("*/*.yaml") if p.stem != "base")
NEEDS = {  # what a person must give with it
    "data/files": ["data.path=records.json"],
    "data/hf": ["data.source.repo=owner/name"],
    "data/hf_stream": ["data.source.repo=owner/name", "trainer.max_steps=9", "trainer.val_check_interval=3"],
    "data/mixture": ["data.sets={demo: {repeats: 2}, mine: {path: records.json}}"],
    "template/file": ["template.path=template.jinja"],
    "template/chat": ["model=hf", "model.path=owner/name"],
    "model/hf": ["model.path=owner/name"],
    "adapter/qlora": ["model=hf", "model.path=owner/name"],
}


@pytest.fixture(autouse=True)
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "records.json").write_text("[]")
    monkeypatch.chdir(tmp_path)


def command_of(group: str) -> str:
    """The command whose configuration a group belongs to; `train` where it has it."""
    commands = ["train", *sorted(p.stem for p in CONF.glob("*.yaml"))]
    return next(c for c in commands if re.search(rf"^  - (override )?{group}:", (CONF / f"{c}.yaml").read_text(), re.M))


@pytest.mark.parametrize("name", [str(p) for p in GROUPS if p.parts[0] not in ("hydra", "paths")])
def test_every_file_of_a_group_composes_and_passes_the_checks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    group, _, option = name.partition("/")
    if (command := command_of(group)) != "train":
        assert composed(command, f"{group}={option}")[group].name == option
        return
    if name == "launcher/ray":
        pytest.importorskip("hydra_plugins.hydra_ray_launcher")
    if group == "logger":
        monkeypatch.setattr("instruct_lit.optional_imports.installed", lambda module: True)
    overrides = [f"{group}={option}", *NEEDS.get(name, []), "hydra.runtime.output_dir=out"]
    config = composed("train", *overrides, hydra=True)
    HydraConfig.instance().set_config(config)  # for ${hydra:…}
    check_command("train", config)
    check_targets(config)


@pytest.mark.parametrize("command", sorted(p.stem for p in CONF.glob("*.yaml")))
def test_every_command_composes_with_its_schema(command: str) -> None:
    config = composed(command)
    assert set(vars(COMMANDS[command]())) <= set(config)


def test_the_recipes_of_the_book_are_its_settings() -> None:
    config = composed("train", "experiment=book_gpt2_medium")
    assert (config.model.n_layers, config.trainer.max_epochs, config.data.batch_size) == (24, 2, 8)
    assert (config.optimizer.lr, config.optimizer.weight_decay, config.data.split) == (5e-5, 0.1, "book")


def test_every_experiment_is_headed_by_its_command_and_need() -> None:
    for path in (CONF / "experiment").glob("*.yaml"):
        lines = path.read_text().splitlines()
        assert lines[0] == "# @package _global_"
        assert lines[1] == f"# python -m instruct_lit.train experiment={path.stem}"
        assert lines[2].startswith("# ")


def test_the_names_that_users_write_stay() -> None:
    config = composed("train")
    for key in (
        "model template batching optimizer.lr data.batch_size data.max_length data.mask_prompt data.split data.path "
        "trainer.max_epochs trainer.max_steps trainer.accumulate_grad_batches trainer.devices seed fit ckpt_path "
        "optimized_metric"
    ).split():
        parent, _, leaf = key.rpartition(".")
        assert leaf in (OmegaConf.select(config, parent) if parent else config), key


def test_composed_configs_name_no_path_of_this_machine() -> None:
    for path in CONF.rglob("*.yaml"):
        assert not re.search(r"(^|[\s'\":])/(home|root|work|tmp)/", path.read_text()), path


@pytest.mark.parametrize("arguments", [["--help"], ["--cfg", "job"], ["optimiser.lr=1"]])
def test_help_config_and_typing_errors_import_nothing_heavy(arguments: list[str]) -> None:
    program = (
        "import sys, runpy\n"
        f"sys.argv = ['train', *{arguments!r}]\n"
        "try:\n    runpy.run_module('instruct_lit.train', run_name='__main__')\n"
        "except SystemExit:\n    pass\n"
        "heavy = {'torch', 'lightning', 'transformers', 'matplotlib', 'tiktoken'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("weight", "expected"), [(None, (True, 1.0)), (0.0, (True, 0.0)), (0.1, (False, 0.1)), (1.0, (False, 1.0))]
)
def test_the_weight_of_prompts_takes_the_place_of_the_mask(weight: float | None, expected: tuple[bool, float]) -> None:
    from instruct_lit.config.data_builders import masking_of

    data = OmegaConf.create({"prompt_weight": weight, "mask_prompt": True, "loss_on": "last"})
    masking = masking_of(data)
    assert (masking.mask_prompt, masking.prompt_weight) == expected and masking.loss_on == "last"
