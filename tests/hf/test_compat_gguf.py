"""The undocumented parts of gguf that are used: a version without one of them is named here."""

from pathlib import Path

import numpy as np
import pytest

from instruct_lit.hf.compat_gguf import forget_reader, shared_reader

gguf = pytest.importorskip("gguf")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_token_list(["a", "<0x41>", "é🙂", ""])
    writer.add_token_scores([0.5, -1.0, 2.0, 3.0])
    writer.add_tensor("token_embd.weight", np.arange(32, dtype=np.float32).reshape(4, 8))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tmp_path / "m.gguf"


def test_everything_inside_shares_one_reader_until_the_file_changes(file: Path) -> None:
    theirs, names = gguf.GGUFReader, gguf.get_tensor_name_map
    with shared_reader(file.name):
        first = gguf.GGUFReader(str(file))
        assert gguf.GGUFReader(file) is first, "gguf.GGUFReader is not the one that is imported"
        arch = gguf.MODEL_ARCH.LLAMA
        assert gguf.get_tensor_name_map(arch, 2) is gguf.get_tensor_name_map(arch, 2)
    assert (gguf.GGUFReader, gguf.get_tensor_name_map) == (theirs, names)
    with shared_reader(None):
        assert gguf.GGUFReader is theirs
    file.write_bytes(file.read_bytes())
    with shared_reader(file.name):
        assert gguf.GGUFReader(file) is not first
    forget_reader()


def test_fields_and_tensors_are_those_of_gguf(file: Path) -> None:
    expected = gguf.GGUFReader(file)
    with shared_reader(file.name):
        found = gguf.GGUFReader(file)
    assert type(found.data) is np.ndarray, "GGUFReader.data is not the array that values are slices of"
    assert [(name, field.contents()) for name, field in found.fields.items()] == [
        (name, field.contents()) for name, field in expected.fields.items()
    ]
    for ours, theirs in zip(found.tensors, expected.tensors, strict=True):
        assert ours.name == theirs.name and np.array_equal(ours.data, theirs.data)
    forget_reader()
