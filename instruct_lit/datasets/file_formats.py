"""Readers of .csv and .parquet files, one record at a time in bounded memory."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from instruct_lit.core.optional_imports import load
from instruct_lit.errors import DataError

MAX_CELL = 1 << 30  # characters
BATCH_ROWS = 128
MAX_ROW_GROUP, MAX_VALUES = 4 << 30, 100_000_000  # bytes, and values of a column


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
                    surplus = len(cells) > len(header)
                    remedy = (
                        "put a text that contains a comma in double quotes"
                        if surplus
                        else "an empty cell needs its comma"
                    )
                    found = f"{len(cells)} cells, but the header has {len(header)} ({', '.join(header)})"
                    yield place, DataError(f"{place} (line {rows.line_num}): {found}; {remedy}")
        except csv.Error as error:
            raise DataError(f"{path}, line {rows.line_num}: invalid CSV ({error})") from error


def read_parquet(path: Path) -> Iterator[tuple[str, Any]]:
    """Records of a parquet file, one at a time: memory is bounded by the distinct texts, however often each occurs.

    Raises: DataError, also for a row group above `MAX_ROW_GROUP` bytes or a column of it above `MAX_VALUES` values.
    """
    parquet, lib = (load(f"pyarrow.{module}", str(path), "parquet") for module in ("parquet", "lib"))
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            _check_row_groups(path, file.metadata)
            leaves = [file.schema.column(i) for i in range(len(file.schema))]
        texts = [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"]
        with parquet.ParquetFile(path, read_dictionary=texts) as file:
            for batch in file.iter_batches(batch_size=BATCH_ROWS):
                for values in zip(*batch.columns, strict=True):
                    place = f"{path}, record {number}"
                    try:
                        yield place, {n: _python(value) for n, value in zip(batch.schema.names, values, strict=True)}
                    except (ValueError, OverflowError) as error:
                        yield place, DataError(f"{place}: a value cannot be read ({error})")
                    number += 1
    except (ValueError, OSError, OverflowError, lib.ArrowException) as error:
        raise DataError(f"{path}, record {number}: invalid parquet file ({error})") from error


def _check_row_groups(path: Path, metadata: Any) -> None:
    """Raise DataError when a row group is too large to be read."""
    for group in range(metadata.num_row_groups):
        about = metadata.row_group(group)
        columns = [about.column(i) for i in range(about.num_columns)]
        for found, limit, what in (
            (sum(column.total_uncompressed_size for column in columns), MAX_ROW_GROUP, "bytes uncompressed"),
            (max((column.num_values for column in columns), default=0), MAX_VALUES, "values in a column"),
        ):
            if found > limit:
                raise DataError(
                    f"{path}: row group {group} has {found:,} {what}; at most {limit:,} are read; write the file with "
                    "smaller row groups (row_group_size=)"
                )


def _python(value: Any) -> Any:
    """An Arrow value as a Python object; a point in time that Python has none for, as text."""
    try:
        return value.as_py()
    except (ValueError, OverflowError):
        if re.search("timestamp|date|time|duration", str(value.type)):
            return f"<{value.type}>"
        raise


READERS = {".csv": read_csv, ".parquet": read_parquet}
