"""Which run is not run again."""

import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from instruct_lit.errors import ConfigError
from instruct_lit.reproduce import check_reproduce


def finished_run(folder: Path, *overrides: str) -> Path:
    (folder / ".hydra").mkdir()
    for name in ("provenance.json", "metrics.json"):
        (folder / name).write_text("{}")
    (folder / ".hydra" / "overrides.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(["seed=1", *overrides])))
    return folder


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("model.trust_remote_code=true", "runs code of a repository"),
        pytest.param("model={path:evil,trust_remote_code:true}", "runs code of a repository", marks=pytest.mark.slow),
        pytest.param("++model.trust_remote_code=1", "runs code of a repository", marks=pytest.mark.slow),
        ("optimizer._target_=instruct_lit.suites.execution.passes", "names a constructor"),
        ("+callbacks.mine={_target_:os.system,command:x}", "names a constructor"),
        pytest.param("+trainer.plugins=[{_target_:os.system}]", "names a constructor", marks=pytest.mark.slow),
        pytest.param(
            "data.source._target_=instruct_lit.data.hf_tokenizer.load_tokenizer",
            "names a constructor",
            marks=pytest.mark.slow,
        ),
        ("data.filters={function: {path: evil.py}}", "runs a Python file"),
        pytest.param("data={filters:{function:{path:evil.py}}}", "runs a Python file", marks=pytest.mark.slow),
        pytest.param("+data.filters.function.path=evil.py", "runs a Python file", marks=pytest.mark.slow),
        ("--config-dir=evil", "is an option of the command line"),
        pytest.param("-m", "is an option of the command line", marks=pytest.mark.slow),
        pytest.param("--experimental-rerun=evil.pickle", "is an option of the command line", marks=pytest.mark.slow),
        ("hydra.searchpath=[file://evil]", "changes Hydra itself"),
        pytest.param("+hydra.callbacks.mine._target_=os.system", "changes Hydra itself", marks=pytest.mark.slow),
        pytest.param("hydra={job_logging:{root:{}}}", "changes Hydra itself", marks=pytest.mark.slow),
        pytest.param("hydra/job_logging=default", "changes Hydra itself", marks=pytest.mark.slow),
        pytest.param("+callbacks@hydra.callbacks=default", "changes Hydra itself", marks=pytest.mark.slow),
        ("experiment=../../evil", "names a configuration outside of this program's"),
        pytest.param(
            "data=[files,../../../evil]", "names a configuration outside of this program's", marks=pytest.mark.slow
        ),
        ("+evil/../../x=y", "is not an override|names a configuration outside"),
        ("data.path=${oc.env:HOME}", "is an interpolation"),
        pytest.param(
            "data.filters=${oc.decode:'{function:{path:evil.py}}'}", "is an interpolation", marks=pytest.mark.slow
        ),
        ("seed=1,2", "is a sweep"),
        ("no override", "is not an override"),
        ("seed=" + "{a:" * 300 + "1" + "}" * 300, "is not an override"),
        ("template.path=evil.jinja", "names a file"),
        ("callbacks.best_checkpoint.dirpath=/root/.ssh", "names a folder to write to"),
        pytest.param(
            "callbacks.best_checkpoint.filename=../../.ssh/x", "names a place to write to", marks=pytest.mark.slow
        ),
        pytest.param(
            "callbacks={best_checkpoint:{filename:/srv/x}}", "names a place to write to", marks=pytest.mark.slow
        ),
        ("logger.tensorboard.name='~/x'", "names a place to write to"),
        pytest.param(
            "+logger.mlflow.tracking_uri=http://evil.example", "names a place to write to", marks=pytest.mark.slow
        ),
        pytest.param(
            "+logger.wandb.settings={base_url:'https://evil.example'}",
            "names a place to write to",
            marks=pytest.mark.slow,
        ),
        ("+logger.comet.offline_directory=x", "names a folder to write to"),
    ],
)
def test_code_that_a_run_folder_names_is_not_run(tmp_path: Path, override: str, reason: str) -> None:
    run = finished_run(tmp_path, override)
    config = {"run": str(run), "tolerance": 0.1, "changes": []}
    with pytest.raises(
        ConfigError, match=rf"an override that ({reason}) is not used from a run folder; if you trust it, add 'changes="
    ):
        check_reproduce(OmegaConf.create(config))
    trusted = OmegaConf.create({**config, "changes": [override.replace("${", "\\${")]})
    assert check_reproduce(trusted) == (run.resolve(), ["seed=1", override])


@pytest.mark.parametrize(
    "overrides",
    [
        ["model=gpt2", "model.pretrained=false", "data.split={train:40,val:10,test:10}", "template=chatml"],
        ["experiment=overfit_demo", "sweep=optuna", "optimizer=muon", "~callbacks.best_checkpoint", "trainer=ddp_cpu"],
        ["data=files", "data.path=[a.jsonl,b.csv]", "data.filters={length:{}}", "model.trust_remote_code=false"],
        ["callbacks.best_checkpoint.filename='{step}-{val/loss:.2f}'", "logger.tensorboard.name=of/mine"],
    ],
)
def test_harmless_overrides_are_used_again(tmp_path: Path, overrides: list[str]) -> None:
    run = finished_run(tmp_path, *overrides)
    found = check_reproduce(OmegaConf.create({"run": str(run), "tolerance": 0.1, "changes": []}))
    assert found == (run.resolve(), ["seed=1", *overrides])


@pytest.mark.parametrize("override", ["nope=3", "logger.nope=1", "seed=text", "~nope"])
def test_overrides_of_another_version_are_refused(tmp_path: Path, override: str) -> None:
    run = finished_run(tmp_path, override)
    message = rf"^run={run}: this version cannot compose its overrides \(.*(nope|seed).*\); give another run, or train with them$"
    with pytest.raises(ConfigError, match=message):
        check_reproduce(OmegaConf.create({"run": str(run), "tolerance": 0.1, "changes": []}))


def test_an_interrupted_run_is_refused(tmp_path: Path) -> None:
    run = finished_run(tmp_path)
    (run / "metrics.json").write_text('{"interrupted": true, "n_steps": 3}')
    with pytest.raises(ConfigError, match=rf"^run={run}: was interrupted before its end; resume it, or give another"):
        check_reproduce(OmegaConf.create({"run": str(run), "tolerance": 0.1, "changes": []}))


@pytest.mark.parametrize("text", ["{}", "- [1]", "- 1", "a: &x b\nc: *x", "[" * 20_000])
def test_a_damaged_file_of_overrides_is_refused(tmp_path: Path, text: str) -> None:
    run = finished_run(tmp_path)
    (run / ".hydra" / "overrides.yaml").write_text(text)
    with pytest.raises(
        ConfigError, match=f"{run}/.hydra/overrides.yaml: (not a list of overrides|cannot be read|has YAML)"
    ):
        check_reproduce(OmegaConf.create({"run": str(run), "tolerance": 0.1, "changes": []}))


def test_files_of_the_user_that_composed_a_run_are_named_again_or_the_run_is_refused(tmp_path: Path) -> None:
    run = finished_run(tmp_path)
    sources = [{"provider": "main", "schema": "file", "path": "/elsewhere/conf"},
               {"provider": "command-line", "schema": "file", "path": "/own"}]  # fmt: skip
    saved = {"job": {"config_name": "mine"}, "runtime": {"config_sources": sources},
             "overrides": {"hydra": ["hydra.searchpath=[file://more]", "hydra.run.dir=x"]}}  # fmt: skip
    OmegaConf.save({"hydra": saved}, run / ".hydra" / "hydra.yaml")
    given = ["--config-dir=/own", "--config-name=mine", "hydra.searchpath=[file://more]"]
    config = {"run": str(run), "tolerance": 0.1, "changes": given[:1]}
    message = (
        f"run={run}: was started with --config-name=mine hydra.searchpath=[file://more], which is not used from a run "
        'folder; if you trust it, add \'changes=["--config-name=mine", "hydra.searchpath=[file://more]"]\''
    )
    with pytest.raises(ConfigError, match=re.escape(message)):
        check_reproduce(OmegaConf.create(config))
    assert check_reproduce(OmegaConf.create({**config, "changes": given})) == (run.resolve(), ["seed=1"])
    (run / ".hydra" / "hydra.yaml").write_text("hydra: [1]")
    with pytest.raises(ConfigError, match=r"hydra.yaml: not the configuration of Hydra; give another run"):
        check_reproduce(OmegaConf.create(config))
