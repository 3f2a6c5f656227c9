"""Which constructors a configuration may name, and what they may be given."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from instruct_lit.config.data_builders import data_of
from instruct_lit.config.targets import build
from instruct_lit.datasets.demo import DemoSource
from instruct_lit.errors import ConfigError


def node(target: object, **arguments: object) -> object:
    return OmegaConf.create({"_target_": target, **arguments})


def test_a_constructor_gets_its_arguments() -> None:
    source = build(node("instruct_lit.datasets.demo.DemoSource", n_examples=3), "data.source", seed=1)
    assert isinstance(source, DemoSource) and (source.n_examples, source.seed) == (3, 1)


@pytest.mark.parametrize(
    ("key", "target"),
    [
        ("data.source", "instruct_lit.datasets.download.os.system"),
        ("data.source", "instruct_lit.core.bundle.shutil.rmtree"),
        ("data.source", "lightning.pytorch.callbacks.EarlyStopping"),
        ("optimizer", "torch.optim.lr_scheduler.warnings.warn"),
        ("optimizer", "torch.optim._functional"),
        ("trainer", "lightning.pytorch.trainer.trainer.os.system"),
        ("callbacks.mine", "instruct_lit.report.write"),
        ("logger.mine", "lightning.pytorch.loggers.logger.os"),
    ],
)
def test_what_is_not_listed_for_a_key_is_refused(key: str, target: str, tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    with pytest.raises(ConfigError, match=rf"{key}._target_={target}: not an allowed target; allowed are "):
        build(node(target, command=f"rm {tmp_path / 'mine'}", path=str(tmp_path)), key)
    assert (tmp_path / "mine").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            node("os.system", command="x"),
            "optimizer._target_=os.system: not an allowed target; allowed are instruct_lit.core.training.optimizer.adamw, ",
        ),
        (node(None), "optimizer._target_=None: not an allowed target; allowed are"),
        (node("torch.optim.Nothing"), r"optimizer._target_=torch.optim.Nothing: cannot be imported"),
        (
            node("torch.optim.SGD", momentun=1),
            r"optimizer.momentun: torch.optim.SGD has no such argument; did you mean momentum\?\n  allowed: params, lr",
        ),
        (
            node("torch.optim.Adagrad", lr_decay="x"),
            "optimizer.lr_decay=x: torch.optim.Adagrad requires float",
        ),
        (
            node("torch.optim.SGD", betas=[0.9, 0.95], eps=1e-8),
            r"torch.optim.SGD has no such argument; leave it out \(~optimizer.betas ~optimizer.eps\)\n  allowed: params, lr",
        ),
        (node("mylib.Mine"), r"; what is yours is given in Python \(docs/python-api.md\), or as data in a file"),
        (False, "optimizer=False: not a mapping; give one with a _target_"),
    ],
)
def test_what_cannot_be_built_is_said(given: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(given, "optimizer")


def test_a_source_that_a_run_folder_names_is_one_of_the_data() -> None:
    """`torch.hub.load` runs code out of a folder, and `evaluate run=…` takes the source that the folder names."""
    source = {"_target_": "torch.hub.load", "repo_or_dir": "evil", "model": "m", "source": "local"}
    data = {"name": "x", "source": source, "sets": None, "max_length": 9, "columns": None, "split": "book"}
    config = OmegaConf.create({"data": {**data, "test_path": None, "val_path": None}, "paths": {"cache": "c"}})
    with pytest.raises(
        ConfigError,
        match=r"data.source._target_=torch.hub.load: not an allowed target; allowed are instruct_lit.core.data.",
    ):
        data_of(config, None, None, 64)  # type: ignore[arg-type]
