"""Which run is not run again."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from instruct_lit.errors import ConfigError
from instruct_lit.reproduce import check_reproduce


@pytest.mark.parametrize(
    "override",
    [
        "model.trust_remote_code=true",
        "optimizer._target_=instruct_lit.suites.execution.passes",
        "data.filters={function: {path: evil.py}}",
        "+data.filters.function.path=evil.py",
    ],
)
def test_code_that_a_run_folder_names_is_not_run(tmp_path: Path, override: str) -> None:
    (tmp_path / ".hydra").mkdir()
    for name in ("provenance.json", "metrics.json"):
        (tmp_path / name).write_text("{}")
    (tmp_path / ".hydra" / "overrides.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(["seed=1", override])))
    config = {"run": str(tmp_path), "tolerance": 0.1, "changes": []}
    with pytest.raises(ConfigError, match="code named by a run folder is not executed; if you trust it, add 'changes="):
        check_reproduce(OmegaConf.create(config))
    assert check_reproduce(OmegaConf.create({**config, "changes": [override]})) == tmp_path.resolve()
