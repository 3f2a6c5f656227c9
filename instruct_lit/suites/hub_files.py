"""Files of the hub's data sets that suites read themselves."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from instruct_lit.core.data.records import read_records
from instruct_lit.errors import DataError
from instruct_lit.suites.suite import BenchmarkError, RunRequest


def hub_file(request: RunRequest, repo: str, name: str, instead: str = "") -> Path:
    """A file of a data set: in `data_dir`, or downloaded from the hub where that is not given.

    Args:
        instead: another remedy that messages name.

    Raises: BenchmarkError without the file.
    """
    suite, instead = request.suite.name, f", or give {instead}" if instead else ""
    if request.data_dir is not None:
        path = request.data_dir / repo / name
        if not path.is_file():
            raise BenchmarkError(
                f"suite={suite}: {path}: no such file; put {name} of the hub's data set {repo} there{instead}"
            )
        return path
    from huggingface_hub import hf_hub_download

    try:
        # Data, not code: the leaderboards compare with the latest revision.
        return Path(hf_hub_download(repo, name, repo_type="dataset", cache_dir=request.cache / "hub"))  # nosec B615
    except Exception as error:  # the hub's client passes on errors of its HTTP library
        raise BenchmarkError(
            f"suite={suite}: {name} of {repo} cannot be downloaded from the Hugging Face hub ({type(error).__name__}); "
            f"give benchmark.data_dir=<folder with {repo}/{name}>{instead}"
        ) from error


def read_rows(path: Path, row_of: Callable[[Any], Any]) -> list[Any]:
    """What `row_of` makes of each record of a file.

    Raises: BenchmarkError, naming the line, for a record that lacks a key; DataError for one that is not JSON.
    """
    rows = []
    for place, record in read_records(path):
        if isinstance(record, DataError):
            raise record
        try:
            rows.append(row_of(record))
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            raise BenchmarkError(f"{place}: not a record of {path.name} ({type(error).__name__}: {error})") from error
    return rows
