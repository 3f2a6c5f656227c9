"""GPT-2 weights from the Hugging Face hub, through its own client and cache."""

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from instruct_lit.core.model.pretrained import WEIGHTS
from instruct_lit.errors import DownloadError, first_line


def download_gpt2(repo: str, revision: str | None = None, cache_dir: Path | None = None) -> Path:
    """Return the directory with `config.json` and weights of a repository, downloaded unless it is in the cache.

    Raises:
        DownloadError: the hub cannot be reached, or a file has not the announced checksum.
    """
    from huggingface_hub import constants, hf_hub_download

    for name in ("config.json", WEIGHTS):
        try:
            with checked_download(repo, cache_dir):
                file = Path(hf_hub_download(repo, name, revision=revision, cache_dir=cache_dir))
        except DownloadError:
            raise
        except Exception as error:  # the hub's client lets errors of its HTTP library through
            cause = next((e for e in (error.__cause__, error.__context__) if e is not None), error)
            by_hand = Path(cache_dir or constants.HF_HUB_CACHE) / repo.rpartition("/")[2]
            raise DownloadError(
                f"model {repo}, revision {(revision or 'main')[:12]}: {name} not fetched from {constants.ENDPOINT} "
                f"({type(cause).__name__}: {first_line(cause)[:40]}); offline: model.path={by_hand} with config.json "
                f"and {WEIGHTS} in it, or model=nano data=demo"
            ) from error
    return file.parent


@contextmanager
def checked_download(repo: str, cache_dir: Path | None = None) -> Iterator[None]:
    """Check what is downloaded of a repository inside; nothing is checked of a folder.

    Raises:
        DownloadError: a file has not the announced checksum, whatever else went wrong with it.
    """
    from huggingface_hub import constants

    if Path(repo).expanduser().is_dir():
        yield
        return
    snapshots = Path(cache_dir or constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}" / "snapshots"
    before = {file.resolve() for file in snapshots.rglob("*")}
    try:
        yield
    finally:
        for file in snapshots.rglob("*"):
            if file.is_file() and file.resolve() not in before:
                _check_sha256(file, repo)


def _check_sha256(file: Path, repo: str) -> None:
    """Refuse and remove a downloaded file whose sha256 is not the one that the hub announced.

    The hub's client checks the size alone; it names the blobs of large files by their sha256.
    """
    blob = file.resolve()
    if not re.fullmatch("[0-9a-f]{64}", blob.name):
        return
    with blob.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != blob.name:
        file.unlink(missing_ok=True)
        blob.unlink(missing_ok=True)
        raise DownloadError(
            f"model {repo}: {file.name} has sha256 {found}, the hub announced {blob.name}; it was removed, try again"
        )
