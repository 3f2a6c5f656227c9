"""Where transformers finds a model and its tokenizer."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class HFSource:
    """A directory or a repository of the Hugging Face hub.

    Args:
        path: the directory or the hub id.
        revision: branch, tag or commit of the repository.
        gguf_file: name of a GGUF file in it, whose weights are converted to fp32.
        trust_remote_code: whether Python code in the repository is executed.
        cache_dir: folder of downloads; None: that of the hub's client.
    """

    path: str
    revision: str | None = None
    gguf_file: str | None = None
    trust_remote_code: bool = False
    cache_dir: Path | None = None

    def options(self) -> dict[str, Any]:
        """The arguments of `from_pretrained` besides the path."""
        given = {"revision": self.revision, "gguf_file": self.gguf_file, "cache_dir": self.cache_dir}
        return {**{k: v for k, v in given.items() if v}, "trust_remote_code": self.trust_remote_code}
