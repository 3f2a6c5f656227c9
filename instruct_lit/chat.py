"""python -m instruct_lit.chat: talk to finished models in the terminal."""

import atexit
import io
import sys
from contextlib import suppress
from pathlib import Path

from omegaconf import DictConfig

from instruct_lit.config.compose import run_command, runs_of


def chat(config: DictConfig) -> None:
    """Open the models at `run`, one or a list, and chat until the end of the input."""
    from rich.console import Console

    from instruct_lit.config import model_builders as build
    from instruct_lit.serving.chat_loop import Chat
    from instruct_lit.serving.chat_model import open_chat_models

    build.install_satellites()
    chat_models = open_chat_models(runs_of(config), build.given_template(config), config.device)
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")  # bytes that are not UTF-8
    if sys.stdin.isatty():
        keep_history(Path(config.paths.cache) / "chat_history")
    options = build.engine_options(config)
    Chat(chat_models, build.sampling_of(config), Console(), read_line, config.conversation, **options).run()


def read_line(prompt: str) -> str:
    """A line of the input, with a prompt on a terminal."""
    if not sys.stdin.isatty():
        return input()
    try:
        return input(prompt)
    except EOFError:  # Ctrl-D, which leaves the cursor behind the prompt
        print()
        raise


def keep_history(path: Path) -> None:
    """Let the arrow keys recall earlier lines, in later chats too."""
    try:
        import readline
    except ImportError:  # Windows
        return

    def save() -> None:
        with suppress(OSError):  # a cache that is not writable is no reason to fail
            path.parent.mkdir(parents=True, exist_ok=True)
            readline.write_history_file(path)

    with suppress(OSError):  # there is none yet, or one of another library
        readline.read_history_file(path)
    readline.set_history_length(1000)
    atexit.register(save)


if __name__ == "__main__":
    run_command("chat", chat)
