"""Downloads into a cache folder; a partial download is never used.

The retries are not urllib3's Retry: that repeats connections and statuses, but not a body that ends early.
"""

import hashlib
import os
import re
import time
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from urllib.parse import urlparse

from instruct_lit.errors import DownloadError

TIMEOUT_S = 30
N_TRIES = 4
BACK_OFF_S = 1.0


def fetch(url: str, folder: Path, sha256: str | None = None) -> Path:
    """Return the local copy of a URL, downloading it on first use.

    The file is written under a temporary name, checked, and renamed, so that an interrupted download is never used.
    Without `sha256` the checksum of the first download is recorded beside the file and checked from then on.

    Raises: DownloadError, with the path at which the file can be placed manually.
    """
    path = folder / f"{hashlib.sha256(url.encode()).hexdigest()[:8]}-{Path(urlparse(url).path).name}"
    record = path.with_name(path.name + ".sha256")
    if not path.exists():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not os.access(folder, os.W_OK):
                raise PermissionError(13, "permission denied")
        except OSError as error:
            raise DownloadError(f"paths.cache: {folder} cannot be written ({error.strerror})") from error
        _download(url, path, sha256)
        record.unlink(missing_ok=True)  # of an earlier file
    # A record is empty where the program was killed while it wrote it.
    expected = sha256 or (record.read_text().strip() if record.exists() else "")
    found = _sha256(path)
    if expected and found != expected:
        differs = f"sha256 is {found}, expected {expected}; the file has changed"
        raise DownloadError(f"{path}: {differs}; delete it to download it again")
    if not expected:
        record.write_text(found)
    return path


def _download(url: str, path: Path, sha256: str | None) -> None:
    import pooch
    import requests

    downloader = pooch.HTTPDownloader(progressbar=True, timeout=TIMEOUT_S)
    remedy = f"save the file as {path}, give data.path=<a local file>, or use data=demo"
    for attempt in range(1, N_TRIES + 1):
        temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            downloader(url, str(temporary), None)
            _check(temporary, url, sha256)
            os.replace(temporary, path)
            return
        except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
            if attempt == N_TRIES:
                cause = getattr(error.args[0], "reason", error) if error.args else error
                raise DownloadError(f"{url} cannot be reached ({type(cause).__name__}); {remedy}") from error
        except requests.HTTPError as error:
            status = error.response.status_code if error.response is not None else 500
            if attempt == N_TRIES or (status < 500 and status != 429):
                raise DownloadError(f"{url}: the server returns {status}; {remedy}") from error
        except requests.RequestException as error:  # an invalid URL, endless redirects
            raise DownloadError(f"{url}: {error}; {remedy}") from error
        except OSError as error:
            raise DownloadError(f"{path}: cannot be written ({error.strerror or error}); {remedy}") from error
        finally:
            temporary.unlink(missing_ok=True)
        time.sleep(BACK_OFF_S * 2 ** (attempt - 1))


def _check(path: Path, url: str, sha256: str | None) -> None:
    found = _sha256(path)
    if sha256 is not None and found != sha256:
        kind = "an HTML page" if _is_html(path) else "another file"
        raise DownloadError(f"{url}: received {kind} (sha256 {found}, expected {sha256}); it was deleted")
    if sha256 is None and _is_html(path):
        raise DownloadError(f"{url}: received an HTML page instead of data; it was deleted")


def _is_html(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(512).lstrip().lower().startswith((b"<!doctype html", b"<html"))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch_data_set(repo: str, revision: str | None, pattern: str, suffixes: Sequence[str], folder: Path) -> list[Path]:
    """Download the data files of a Hugging Face data set whose names match `pattern` and have one of the suffixes.

    Raises: DownloadError for an invalid name, an unreachable hub without cached files, a file that has not the
    announced checksum, and when no file matches.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        snapshot = snapshot_download(
            repo,
            repo_type="dataset",
            revision=revision,
            cache_dir=folder,
            allow_patterns=[f"{pattern}{suffix}" if pattern.endswith("*") else pattern for suffix in suffixes],
        )
    except HFValidationError as error:
        raise DownloadError(f"data.source.repo={repo}: {error}") from error
    except Exception as error:  # the hub's client lets errors of its HTTP library through
        raise DownloadError(
            f"data set {repo}: cannot be downloaded from the Hugging Face hub ({type(error).__name__}); give "
            "data.path=<local files>, or use data=demo"
        ) from error
    root = Path(snapshot)
    inside = [path for path in sorted(root.rglob("*")) if path.suffix in suffixes]
    files = [path for path in inside if fnmatch(str(path.relative_to(root)), f"{pattern}*")]
    if not files:
        raise DownloadError(f"data set {repo}: no file ending in {', '.join(suffixes)} matches {pattern!r}")
    for file in files:
        blob = file.resolve()  # the hub's client checks the size alone; it names large files by their sha256
        if re.fullmatch("[0-9a-f]{64}", blob.name) and (found := _sha256(blob)) != blob.name:
            file.unlink()
            blob.unlink(missing_ok=True)  # a link's target, otherwise the file itself
            raise DownloadError(
                f"data set {repo}: {file.name} has sha256 {found}, the hub announced {blob.name}; it was removed, "
                "try again"
            )
    return files
