"""Upload to the Hugging Face hub."""

import shlex
from pathlib import Path

from instruct_lit.errors import ConfigError
from instruct_lit.evaluation.judging.response_judge import confirmed


def push(folder: Path, repo: str, private: bool, verified: bool) -> str:
    """Upload a folder to a repository, which is created if it does not exist, after a yes; return its address.

    Raises:
        ConfigError: the folder was not verified, nobody said yes, the repository is public and should be private, or
            the hub refuses or cannot be reached.
    """
    from huggingface_hub import HfApi, ModelCard

    if not verified:
        raise ConfigError(f"push_to_hub={repo}: not uploaded, since no program has verified {folder}; see verify")
    print(f"{repo} will get everything in {folder} ({'private' if private else 'PUBLIC'})", flush=True)
    if not confirmed("upload it?"):
        raise ConfigError(f"push_to_hub={repo}: not uploaded, since nobody said yes; {folder} is complete")
    try:
        ModelCard.load(folder / "README.md").validate()
        api = HfApi()
        api.create_repo(repo, private=private, exist_ok=True)
        if not private or api.model_info(repo).private is not False:  # one that existed stays as it is
            return str(api.upload_folder(repo_id=repo, folder_path=folder))
    except Exception as error:  # the hub's client lets errors of its HTTP library through
        status = getattr(getattr(error, "response", None), "status_code", None)
        said = " ".join((getattr(error, "server_message", None) or str(error)).split())[:100]
        first = "log in with 'hf auth login', then" if status in (401, 403, 404) else "later:"
        command = f"hf upload {repo} {shlex.quote(str(folder))} . --{'private' if private else 'no-private'}"
        reason = f"{type(error).__name__}: {said}" if status is None else f"status {status}: {said}"
        raise ConfigError(f"push_to_hub={repo}: not uploaded ({reason}); {first} {command}") from error
    raise ConfigError(
        f"push_to_hub={repo}: not uploaded, since it exists and is public; give private=false, or another name"
    )
