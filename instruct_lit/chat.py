"""python -m instruct_lit.chat: talk to finished models in the terminal."""

from __future__ import annotations

import atexit
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from instruct_lit.config.compose import run_command
from instruct_lit.config.schema import ChatConfig, check_values, missing_runs
from instruct_lit.errors import ConfigError

if TYPE_CHECKING:
    from omegaconf import DictConfig


def check_chat(config: Any) -> None:
    """Raise one ConfigError that lists every impossible value of a chat's configuration."""
    problems = check_values(config) + missing_runs(config.run)
    if problems:
        raise ConfigError("\n  ".join(problems))


def chat(config: DictConfig) -> None:
    """Open the models at `run`, one or a list, and chat until the end of the input."""
    check_chat(config)

    from rich.console import Console

    from instruct_lit.config import builders as build
    from instruct_lit.serving.chat_loop import Chat
    from instruct_lit.serving.conversation import open_speakers

    runs = [config.run] if isinstance(config.run, str) else list(config.run)
    build.install_satellites()
    speakers = open_speakers(runs, build.given_template(config), config.device)
    if sys.stdin.isatty():
        keep_history(Path(config.paths.cache) / "chat_history")
    make_weights = build.engine_options(config).get("make_weights")
    Chat(speakers, build.sampling_of(config), Console(), read_line, config.conversation, make_weights).run()


def read_line(sign: str) -> str:
    """A line of the input, after a sign where a person types."""
    return input(sign if sys.stdin.isatty() else "")


def keep_history(path: Path) -> None:
    """Let the arrow keys bring back what was typed, now and in later chats."""
    try:
        import readline
    except ImportError:  # Windows
        return

    def keep() -> None:
        with suppress(OSError):  # a cache that cannot be written keeps nobody from chatting
            path.parent.mkdir(parents=True, exist_ok=True)
            readline.write_history_file(path)

    with suppress(OSError):  # none yet, or one of another library
        readline.read_history_file(path)
    readline.set_history_length(1000)
    atexit.register(keep)


def main() -> None:
    """Entry point of the command."""
    run_command("chat", ChatConfig, chat)


if __name__ == "__main__":
    main()
