"""From a record to its batch: few enough files and functions to be read."""

import json
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import instruct_lit
from instruct_lit.core.data.datamodule import InstructionData
from instruct_lit.core.data.records import FileSource
from instruct_lit.core.data.settings import Batching, Lengths, Splits
from instruct_lit.core.data.template import Template
from instruct_lit.core.data.tokenizer import GPT2Tokenizer

PACKAGE = str(Path(instruct_lit.__file__).parent)


def test_a_record_becomes_a_batch_in_few_files_and_functions(tmp_path: Path, tokenizer: GPT2Tokenizer) -> None:
    path = tmp_path / "records.json"
    path.write_text(json.dumps([{"instruction": f"Say {i}.", "output": f"{i}"} for i in range(40)]))
    data = InstructionData(
        FileSource(str(path)),
        Template("short", "{{ instruction }}\n{{ response }}"),
        tokenizer,
        tmp_path,
        Lengths(64),
        Splits({"train": 0.8, "val": 0.1, "test": 0.1}),
        batching=Batching(layout="packed", shared_prefix=True, pad_to_multiple_of=32),
    )
    called: set[tuple[str, str]] = set()

    def record(frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(PACKAGE) and not code.co_name.startswith("<"):
            called.add((code.co_filename, code.co_qualname))

    sys.setprofile(record)
    threading.setprofile(record)
    try:
        data.prepare_data()
        data.setup()
        batch = next(iter(data.train_dataloader()))
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    assert len(batch.example_ids) == 8
    assert len({file for file, _ in called}) <= 9, sorted({file for file, _ in called})
    assert len(called) <= 54, "\n".join(q for _, q in sorted(called))
