"""Compiles `hooks.cpp`, and loads it before torch: torch asks once whether there is a GPU. Imports no torch."""

import ctypes
import importlib.util
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).with_name("hooks.cpp")


def load(compiler: str, folder: Path, device: str) -> None:
    """Compile into `folder` unless it was, and load; `device` is cuda or mps."""
    assert "torch" not in sys.modules, "torch was imported before"
    spec = importlib.util.find_spec("torch")
    assert spec is not None and spec.origin is not None
    torch = Path(spec.origin).parent
    library = folder / f"{device}_hooks.so"
    if not library.exists():
        includes = [f"-I{torch / 'include'}", f"-I{torch / 'include/torch/csrc/api/include'}"]
        command = [compiler, "-std=c++20", "-O0", f"-DPRETEND_{device.upper()}", "-shared", "-fPIC", *includes, str(SOURCE), "-o", str(library),
                   f"-L{torch / 'lib'}", "-lc10", "-ltorch_cpu"]  # fmt: skip
        subprocess.run(command, check=True)
    for name in ("libtorch_global_deps.so", "libc10.so", "libtorch_cpu.so"):
        ctypes.CDLL(str(torch / "lib" / name), mode=ctypes.RTLD_GLOBAL)
    ctypes.CDLL(str(library))
