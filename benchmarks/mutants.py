"""Mutation testing of the modules that the loss depends on: which small changes of them no test notices.

    pip install cosmic-ray
    python -m benchmarks.mutants                  # all modules
    python -m benchmarks.mutants core.data.batching   # one

The mutants are cosmic-ray's. Each is tried in a fork of one process that has imported the libraries, by the module's own
tests, until the first that fails; docs/trust.md explains those that survive.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.machinery
import io
import os
import signal
import sys
import time
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TESTS = {
    "accel.cross_entropy": ["tests/accel/test_cross_entropy.py", "tests/accel/test_weight_copies.py"],
    "accel.cuda_graphs": ["tests/accel/test_cuda_graphs.py"],
    "core.model.attention": ["tests/core/model/test_attention.py"],
    "accel.attention_groups": ["tests/accel/test_attention_products.py"],
    "accel.attention_products": ["tests/accel/test_attention_products.py"],
    "accel.attention_varlen": ["tests/accel/test_attention_varlen.py"],
    "core.data.encode": ["tests/core/data/test_encode.py"],
    "core.data.batching": ["tests/core/data/test_batching.py"],
    "core.generation.sampling": ["tests/core/generation/test_sampling.py"],
}
# One change of each kind: cosmic-ray's other replacements of an operator are noticed where this one is.
OPERATORS = [
    *(f"ReplaceBinaryOperator_{change}" for change in (
        "Add_Sub", "Sub_Add", "Mul_Div", "Div_Mul", "FloorDiv_Mul", "Mod_Mul", "Pow_Mul", "BitAnd_BitXor")),
    *(f"ReplaceComparisonOperator_{change}" for change in (
        "Eq_NotEq", "NotEq_Eq", "Lt_LtE", "Lt_GtE", "LtE_Lt", "LtE_Gt", "Gt_GtE", "Gt_LtE", "GtE_Gt", "GtE_Lt", "Is_IsNot", "IsNot_Is")),
    "ReplaceUnaryOperator_Delete_USub", "ReplaceUnaryOperator_Delete_Invert", "ReplaceUnaryOperator_Delete_Not", "AddNot",
    "ReplaceTrueWithFalse", "ReplaceFalseWithTrue", "ReplaceAndWithOr", "ReplaceOrWithAnd", "ReplaceBreakWithContinue",
    "ReplaceContinueWithBreak", "NumberReplacer", "ZeroIterationForLoop",
]  # fmt: skip


def mutants_of(source: str) -> Iterator[str]:
    """Every mutant of a module's source."""
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

    for name in OPERATORS:
        operator, occurrence = get_operator(f"core/{name}")(), 0
        while (mutant := mutate_code(source, operator, occurrence)) is not None:
            yield mutant
            occurrence += 1


def survives(module: str, source: str, tests: list[str], limit_s: int) -> bool:
    """Whether the tests pass, in a fork, with this source in the module's place; what takes longer does not pass."""
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        return status == 0
    status = 1
    try:
        signal.alarm(limit_s)
        import pytest

        genuine = importlib.machinery.SourceFileLoader.get_code

        def get_code(loader: importlib.machinery.SourceFileLoader, name: str) -> object:
            return compile(source, loader.path, "exec") if name == module else genuine(loader, name)

        importlib.machinery.SourceFileLoader.get_code = get_code  # type: ignore[method-assign, assignment]
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            status = int(pytest.main(["-x", "--assert=plain", "-p", "no:cacheprovider", *tests]))
    finally:
        os._exit(status)


def difference(source: str, mutant: str) -> str:
    """The lines that were changed."""
    lines = difflib.unified_diff(source.splitlines(), mutant.splitlines(), n=0, lineterm="")
    changed = [line for line in lines if not line.startswith(("---", "+++"))]
    return "\n    ".join(line.strip() if line.startswith("@@") else line for line in changed)


def main() -> None:
    """Try all mutants of the chosen modules and show the survivors."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("modules", nargs="*", default=list(TESTS), metavar="module", help=", ".join(TESTS))
    chosen = parser.parse_args().modules
    os.chdir(ROOT)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for library in ("torch", "lightning.pytorch", "omegaconf", "tiktoken", "transformers"):
        importlib.import_module(library)
    assert "instruct_lit" not in sys.modules
    for name in chosen:
        path = ROOT / "instruct_lit" / f"{name.replace('.', '/')}.py"
        source, start = path.read_text(encoding="utf-8"), time.perf_counter()
        module = f"instruct_lit.{name}"
        assert survives(module, source, TESTS[name], 600), f"{name}: its tests fail as it is"
        limit_s = int(10 + 5 * (time.perf_counter() - start))
        n = n_survivors = 0
        for mutant in mutants_of(source):
            n += 1
            if survives(module, mutant, TESTS[name], limit_s):
                n_survivors += 1
                print(f"{name} survives {difference(source, mutant)}", flush=True)
        print(f"{name}: {n - n_survivors} of {n} mutants killed in {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
