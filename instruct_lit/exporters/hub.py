"""Upload to the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from instruct_lit.errors import ConfigError


def push(folder: Path, repo: str, private: bool) -> str:
    """Upload a folder to a repository, which is created if it does not exist, and return its address.

    Raises:
        ConfigError: the hub refuses or cannot be reached.
    """
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        api.create_repo(repo, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=repo, folder_path=folder))
    except Exception as error:  # the hub's client lets errors of its HTTP library through
        raise ConfigError(
            f"push_to_hub={repo}: not uploaded ({type(error).__name__}: {str(error)[:100]}); log in with "
            f"'hf auth login' and upload {folder}"
        ) from error
