"""Readers of .csv and .parquet files, one record at a time in bounded memory."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from instruct_lit.core.optional_imports import load
from instruct_lit.errors import DataError

MAX_CELL = 1 << 30  # characters


def read_csv(path: Path) -> Iterator[tuple[str, Any]]:
    """Records of a CSV file whose first row is the header; a row with too many or too few cells is a DataError."""
    csv.field_size_limit(MAX_CELL)
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(file, strict=True)
        try:
            header = next(rows, [])
            repeated = sorted({name for name in header if header.count(name) > 1})
            if repeated:
                raise DataError(f"{path}: the header has {repeated[0]!r} more than once; rename a column")
            for number, cells in enumerate((row for row in rows if row), start=1):
                place = f"{path}, record {number}"
                if len(cells) == len(header):
                    yield place, dict(zip(header, cells, strict=True))
                else:
                    yield (
                        place,
                        DataError(
                            f"{place} (line {rows.line_num}): {len(cells)} cells, but the header has {len(header)} "
                            f"({', '.join(header)}); put a text that contains a comma in double quotes"
                        ),
                    )
        except csv.Error as error:
            raise DataError(f"{path}, line {rows.line_num}: invalid CSV ({error})") from error


def read_parquet(path: Path) -> Iterator[tuple[str, Any]]:
    """Records of a parquet file."""
    parquet, lib = (load(f"pyarrow.{module}", str(path), "parquet") for module in ("parquet", "lib"))
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=4096):
                for row in batch.to_pylist():
                    yield f"{path}, record {number}", row
                    number += 1
    except (ValueError, OSError, lib.ArrowException) as error:
        raise DataError(f"{path}, record {number}: invalid parquet file ({error})") from error


READERS = {".csv": read_csv, ".parquet": read_parquet}
