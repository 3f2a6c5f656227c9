"""The documentation cannot drift: what it names exists."""

import ast
import importlib
import importlib.util
import inspect
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.commands import Start

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("README.*.md")), *sorted((ROOT / "docs").glob("*.md"))]
SOURCES = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "NOTES.md"]


def named_tests(page: Path) -> list[str]:
    return re.findall(r"`(tests/[\w/]+\.py::\w+)`", page.read_text(encoding="utf-8"))


@pytest.mark.parametrize("named", named_tests(ROOT / "docs" / "faults.md"))
def test_every_row_of_the_fault_table_has_its_test(named: str) -> None:
    file, _, function = named.partition("::")
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    assert function in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_pictures_exist(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?://)([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name} points to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_row_of_a_table_has_as_many_cells_as_its_head(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        counts = {len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}
        assert len(counts) == 1, f"{page.name}: {table[:200]}"
        assert re.match(r".*\n[|: -]+\n", table), f"{page.name}: without a head, so shown as text: {table[:200]}"


def test_the_site_is_built_with_every_link_and_anchor_found(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "index.html").is_file() and (tmp_path / "docs" / "loss.html").is_file()
    loaded = [
        re.findall(r"<(?:script|img|link [^>]*rel=.?stylesheet)[^>]+(?:src|href)=\"?(https?://[^ \">]+)", p.read_text())
        for p in tmp_path.rglob("*.html")
    ]
    assert not any(loaded), "a page loads something from the network"


ROOMS = sorted(folder.name for folder in (ROOT / "instruct_lit").iterdir() if (folder / "__init__.py").is_file())
NAMED = [(page.name, text) for page in SOURCES for text in re.findall(r"`([^`\n]+)`", page.read_text(encoding="utf-8"))]
SYMBOLS = {
    (page, match[1])
    for page, text in NAMED
    if (match := re.fullmatch(rf"(?:instruct_lit\.)?((?:{'|'.join(ROOMS)})(?:\.\w+)+)(?:\(\))?", text))
    and not text.endswith((".json", ".yaml"))
}
FILES = {(page, text) for page, text in NAMED if re.fullmatch(r"[\w./]+/[\w.]+\.py", text)}
TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
BREAKPOINTS = re.findall(r"^ +(python -m pdb .+)$", TUTORIAL, re.MULTILINE)


def resolved(name: str) -> Any:
    """The module, class, function or attribute of a dotted name below `instruct_lit`."""
    parts = name.split(".")
    n_module = len(parts)
    while importlib.util.find_spec(f"instruct_lit.{parts[0]}") and n_module:
        try:
            found: Any = importlib.import_module(".".join(["instruct_lit", *parts[:n_module]]))
            break
        except ModuleNotFoundError:
            n_module -= 1
    for part in parts[n_module:]:
        found = getattr(found, part)
    return found


@pytest.mark.parametrize(("page", "symbol"), sorted(SYMBOLS))
def test_every_dotted_symbol_exists(page: str, symbol: str) -> None:
    try:
        resolved(symbol)
    except AttributeError as error:
        pytest.fail(f"{page}: `{symbol}` does not exist ({error})")


@pytest.mark.parametrize(("page", "file"), sorted(FILES))
def test_every_source_file_exists(page: str, file: str) -> None:
    assert (ROOT / file).is_file() or (ROOT / "instruct_lit" / file).is_file(), f"{page}: `{file}` does not exist"


@pytest.mark.parametrize(
    ("symbol", "line"),
    [
        ("core.data.encode.Encoder._lay_out", "ids += [*prompt, *closed(response, self.tokenizer.eot_id)]"),
        ("core.data.encode.Encoder._lay_out", "is_response[start:end] = weight > 0"),
        ("core.data.batching.Collator._flat", "ids += [inputs[n_prefix:], padding]"),
        ("core.data.batching.Collator._flat", "n_prefix = n_shared([example.ids for example in examples], n_own=2)"),
        ("core.data.batching.Collator._flat", "inputs, targets = example.ids[:-1], example.ids[1:]"),
        ("core.data.batching.Collator._flat", "where = supervised(example, self.mask_prompt)[1:].nonzero()[0]"),
        ("core.training.module.InstructionTuner.training_step", "factor = self.trainer.world_size / max(1, window.reference)"),
        ("core.training.module.InstructionTuner.on_before_optimizer_step", 'self.log("train/loss", loss / n_supervised)'),
    ],
)  # fmt: skip
def test_the_lines_of_the_tutorial_are_in_their_functions(symbol: str, line: str) -> None:
    assert f"`{line}`" in TUTORIAL and line in inspect.getsource(resolved(symbol))


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    assert [p.name for p in (ROOT / "docs").glob("*.md") if p.name != "index.md" and f"({p.name})" not in index] == []


def test_every_satellite_is_in_the_index_and_in_contributing() -> None:
    listed = [(ROOT / page).read_text(encoding="utf-8") for page in ("docs/index.md", "CONTRIBUTING.md")]
    rooms = {folder.name for folder in (ROOT / "instruct_lit").iterdir() if folder.is_dir()}
    satellites = rooms - {"core", "config", "__pycache__"}
    assert [name for name in sorted(satellites) if not all(f"`{name}`" in page for page in listed)] == []


@pytest.mark.slow
@pytest.mark.parametrize("command", BREAKPOINTS)
def test_every_breakpoint_of_the_tutorial_stops(command: str, start: Start, tmp_path: Path) -> None:
    function = re.findall(r'"b ([\w.]+)', command)[0].removesuffix(".__wrapped__").rpartition(".")[2]
    folders = [f"paths.outputs={tmp_path}", *[f"paths.cache={tmp_path / 'cache'}"] * ("paths.cache=" in command)]
    stopped = start("pdb", *shlex.split(command)[3:], *folders, cwd=ROOT)  # without input, the debugger quits there
    stopped.wait()
    shown = stopped.out.read_text() + stopped.err.read_text()
    assert re.search(rf"> \S+\.py\(\d+\){function}\(\)", shown), shown[-4000:]


def test_the_tutorial_has_its_breakpoints() -> None:
    assert len(BREAKPOINTS) == 13
