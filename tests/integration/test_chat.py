"""The chat command in a terminal of 80 columns: typed at, interrupted, and looked at."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from rich.cells import cell_len

from instruct_lit.config.compose import CONF
from instruct_lit.core.bundle import save_bundle
from instruct_lit.core.data.example import Example
from instruct_lit.core.data.template import Template
from instruct_lit.core.generation.sampling import SamplingSettings
from instruct_lit.evaluation.answer_files import read_jsonl
from tests.serving.conftest import greedy, tiny_chat_model

pty = pytest.importorskip("pty", reason="pseudo-terminals are Unix's")
N_COLUMNS = 80


class Terminal:
    """A program in a pseudo-terminal, and all that it has shown."""

    def __init__(self, command: list[str], cwd: Path, **environment: str) -> None:
        import fcntl
        import struct
        import termios

        def own_terminal() -> None:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that Ctrl-C is a signal to it,
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # also where these tests run in the background, deaf to it

        self.fd, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, N_COLUMNS, 0, 0))
        kept = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "NO_COLOR", "FORCE_COLOR")}
        self.process = subprocess.Popen(
            command, cwd=cwd, env={**kept, "TERM": "xterm-256color", **environment}, stdin=theirs, stdout=theirs,
            stderr=theirs, start_new_session=True,
            preexec_fn=own_terminal,
        )  # fmt: skip
        os.close(theirs)
        self.shown, self._place = "", 0

    def until(self, text: str, seconds: float = 120) -> str:
        """Read on until the text is there; return what was shown before it since the last call."""
        import select

        end = time.monotonic() + seconds
        while text not in self.shown[self._place :]:
            ready, _, _ = select.select([self.fd], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"{text!r} does not come after {self.shown[-500:]!r}"
            self.shown += os.read(self.fd, 1024).decode("utf-8", "replace").replace("\r\n", "\n")
        start, self._place = self._place, self.shown.index(text, self._place) + len(text)
        return self.shown[start : self._place - len(text)]

    def say(self, line: str, until: str = "\n> ") -> str:
        """Type a line and return what comes between it and the next sign."""
        os.write(self.fd, line.encode() + b"\n")
        self.until(f"{line}\n")
        return self.until(until)


@pytest.mark.slow
def test_a_person_chats(tmp_path: Path) -> None:
    template = Template(**OmegaConf.load(CONF / "template" / "chatml.yaml"))
    chat_model = tiny_chat_model(template, context_length=4096)
    generation = {**vars(SamplingSettings()), "stop": []}
    save_bundle(tmp_path / "model", chat_model.model, chat_model.tokenizer, template, generation, {})
    command = [sys.executable, "-m", "instruct_lit.chat", "run=model", "generation.max_new_tokens=40"]
    terminal = Terminal(command, tmp_path, INSTRUCT_LIT_CACHE=str(tmp_path / "cache"))
    try:
        assert "model (conversation); /help lists the commands" in terminal.until("> ")
        first, mark, limit = terminal.say("Name a colour.").partition("\x1b[2m(cut off: ")
        assert mark and limit.startswith("max_new_tokens=40; /settings max_new_tokens=80)")
        answer = greedy(chat_model, chat_model.prompt_ids(Example("Name a colour.", "")), 40)
        assert first.replace("\n", "").replace(" ", "") == answer.replace("\n", "").replace(" ", "")
        assert "top_p=null" in terminal.say("/settings") and "stop=" in terminal.shown
        terminal.say("/settings max_new_tokens=4000 temperature=1")  # drawn, so that there are many words
        assert "new conversation" in terminal.say("/system Be brief.")
        assert "Be brief." in terminal.say("/prompt Count.")

        # It streams: the first word is there long before the last.
        terminal.say("Count.", until=" ")
        os.write(terminal.fd, b"\x03")
        assert len(terminal.until("(stopped)")) < 12_000
        terminal.until("\n> ")
        time.sleep(0.3)  # the sign is shown before readline has set the terminal, which drops what was typed till then
        os.write(terminal.fd, b"\x03")
        terminal.until("Ctrl-D or /quit ends the chat")
        terminal.until("\n> ")
        terminal.say("/settings max_new_tokens=8 temperature=0.9")
        assert terminal.say("/retry").strip()
        assert "/sing: unknown command" in terminal.say("/sing")
        terminal.say("/help")
        assert "3 responses appended to chat.jsonl" in terminal.say("/save")
        time.sleep(0.3)
        os.write(terminal.fd, b"\x04")
        assert terminal.until("\n", seconds=30) == ""  # the shell's prompt begins a line of its own
        assert terminal.process.wait(timeout=30) == 0
    finally:
        terminal.process.kill()
        terminal.process.wait()
        os.close(terminal.fd)
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal.shown)
    assert "Traceback" not in plain
    # No line is wider than the terminal, but for a single word that is; "^C" is the terminal's own echo.
    lines = [line.strip() for line in plain.replace("^C", "").splitlines()]
    assert [line for line in lines if cell_len(line) > N_COLUMNS and " " in line] == []
    saved = read_jsonl(tmp_path / "chat.jsonl")
    assert [record["finish_reason"] for record in saved] == ["length", "cancelled", "length"]
    assert saved[0]["output"] == answer and saved[1]["system"] == "Be brief."
    assert "history" not in saved[2] and (tmp_path / "cache" / "chat_history").is_file()
