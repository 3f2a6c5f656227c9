"""The terminal chat: lines in, streamed answers of one or several models out, commands that begin with a slash."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from instruct_lit.core.data.example import Example, Turn
from instruct_lit.core.generation.engine import Engine, MakeWeights
from instruct_lit.core.generation.request import Request
from instruct_lit.core.generation.sampling import SamplingSettings
from instruct_lit.errors import ConfigError, InstructLitError, printable
from instruct_lit.serving.conversation import ChatModel
from instruct_lit.serving.wrapping import Wrapped

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

HELP = """\
Every line is an instruction, or a turn where the model has conversations; a
backslash at its end adds the next line.
  /input TEXT      the input of the next instruction, as in Alpaca's records
  /prompt [TEXT]   the last prompt, or that of TEXT, as the model sees it
  /retry           the last instruction again, with the next seed
  /settings [K=V]  show or change them: /settings temperature=0.7 top_k=9
  /system [TEXT]   the system prompt from now on; without TEXT none
  /new             forget the conversation
  /save [FILE]     add what was said to FILE (chat.jsonl), to be trained on
  /help, /quit     Ctrl-C stops an answer, Ctrl-D ends the chat"""


@dataclass
class Column:
    """A model of the chat with its engine, its own course of the conversation, and its answer now."""

    speaker: ChatModel
    engine: Engine
    converses: bool  # whether earlier turns are part of the prompt
    history: list[Turn] = field(default_factory=list)
    request: Request | None = None


class Chat:
    """Reads lines with `read` (which may raise EOFError and KeyboardInterrupt) until the end, and answers on `console`.

    With `conversation` a line is a further turn, without it an instruction of its own; None leaves it to the template:
    Alpaca's are for single instructions, though they have a form for further turns. `said` holds a record for every
    answer.
    """

    def __init__(
        self,
        speakers: Sequence[ChatModel],
        settings: SamplingSettings,
        console: Console,
        read: Callable[[str], str],
        conversation: bool | None = None,
        make_weights: MakeWeights | None = None,
    ) -> None:
        self.columns = []
        for speaker in speakers:
            wanted = not speaker.template.name.startswith("alpaca") if conversation is None else conversation
            engine = Engine(speaker.model, speaker.tokenizer, 1, make_weights)
            self.columns.append(Column(speaker, engine, wanted and speaker.has_turns))
        self.settings, self.console, self.read = settings, console, read
        self.system, self.given = "", ""
        self.last: tuple[str, str] | None = None  # instruction and input
        self.said: list[dict[str, Any]] = []
        self.n_saved = 0

    def run(self) -> None:
        """Chat until /quit or the end of the input."""
        names = ", ".join(column.speaker.name for column in self.columns)
        modes = {"conversation" if column.converses else "single instructions" for column in self.columns}
        self._tell(f"{names} ({' and '.join(sorted(modes))}); /help tells what can be done")
        while True:
            try:
                line = self._line()
            except KeyboardInterrupt:
                self._tell("\nCtrl-D or /quit ends the chat")
                continue
            except EOFError:
                break
            if line.strip() in ("/quit", "/exit"):
                break
            try:
                if line.startswith("/"):
                    self._command(line)
                elif line.strip():
                    self.answer(line, self.given)
                    self.given = ""
            except InstructLitError as error:
                self._tell(f"error: {error}", "red")
        if self.said[self.n_saved :]:
            self._tell(f"{_answers(len(self.said) - self.n_saved)} not saved (/save)")

    def answer(self, instruction: str, given: str) -> None:
        """Answer as every model does, streaming; Ctrl-C keeps what is written so far."""
        for column in self.columns:
            prompt = self._prompt(column, instruction, given)
            try:
                column.request = column.engine.submit(prompt, column.speaker.ending(self.settings))
            except InstructLitError as error:
                for other in self.columns:
                    self._stop(other)
                hint = "; /new starts another conversation" if column.history else ""
                raise ConfigError(f"{column.speaker.name}: {error}{hint}") from error
        self.last, stopped = (instruction, given), False
        try:
            self._stream_one() if len(self.columns) == 1 else self._stream_columns()
        except KeyboardInterrupt:
            stopped = True
        for column in self.columns:
            self._stop(column)
            self._record(column, instruction, given)
        if stopped:
            self._tell("(stopped)")

    def _stream_one(self) -> None:
        (column,) = self.columns
        shown, answer = 0, Wrapped(self.console)
        try:
            for text in self._written(column):
                answer.write(text[shown:])
                shown = len(text)
        finally:
            answer.end()

    def _stream_columns(self) -> None:
        from rich.live import Live

        texts = [self._written(column) for column in self.columns]
        try:
            with Live(console=self.console, transient=True, auto_refresh=False) as live:
                while sum(next(text, None) is not None for text in texts):  # a step of every model
                    live.update(self._table(), refresh=True)
        finally:
            self.console.print(self._table())

    def _table(self) -> Table:
        from rich.table import Table
        from rich.text import Text

        table = Table(expand=True, show_edge=False, pad_edge=False)
        for column in self.columns:
            table.add_column(column.speaker.name, ratio=1, overflow="fold")
        answers = (column.request.stable_text if column.request else "" for column in self.columns)
        table.add_row(*(Text(printable(answer)) for answer in answers))
        return table

    def _written(self, column: Column) -> Iterator[str]:
        """What is certain of the answer after every step."""
        request = column.request
        assert request is not None
        while request.finish_reason is None:
            column.engine.step()
            yield request.stable_text

    def _stop(self, column: Column) -> None:
        if column.request is not None and column.request.finish_reason is None:
            column.engine.cancel(column.request)

    def _record(self, column: Column, instruction: str, given: str) -> None:
        assert column.request is not None
        example = self._example(column, instruction, given)
        text = column.request.text
        self.said.append(
            {
                **replace(example, output=text).as_record(),
                "model": column.speaker.name,
                "finish_reason": column.request.finish_reason,
                "settings": asdict(self.settings),
            }
        )
        if column.converses:
            column.history.append((f"{instruction}\n\n{given}" if given else instruction, text))

    def _example(self, column: Column, instruction: str, given: str) -> Example:
        speaker = column.speaker
        system = self.system if speaker.has_system else ""
        return Example(instruction, "", given, system=system, history=tuple(column.history))

    def _prompt(self, column: Column, instruction: str, given: str) -> list[int]:
        return column.speaker.prompt_ids(self._example(column, instruction, given))

    def _line(self) -> str:
        line = self.read("> ")
        while line.endswith("\\"):
            line = line[:-1] + "\n" + self.read(". ")
        return line

    def _command(self, line: str) -> None:
        name, _, text = line[1:].partition(" ")
        command = getattr(self, f"do_{name}", None)
        if command is None:
            raise ConfigError(f"/{name}: no such command; /help lists them")
        command(text.strip())

    def do_help(self, _: str) -> None:
        self._tell(HELP)

    def do_input(self, text: str) -> None:
        self.given = text
        self._tell("input of the next instruction set" if text else "no input")

    def do_prompt(self, text: str) -> None:
        asked = (text, self.given) if text else self.last
        if asked is None:
            raise ConfigError("/prompt: nothing has been said yet; give a TEXT")
        for column in self.columns:
            # Of the last instruction as it was asked: without the turn that it became.
            history = column.history
            if not text and column.converses:
                column.history = history[:-1]
            ids = self._prompt(column, *asked)
            column.history = history
            self._tell(f"{column.speaker.name}: {len(ids)} tokens of {column.speaker.context_length}")
            self.console.out(printable(column.speaker.tokenizer.decode(ids)), highlight=False)

    def do_retry(self, _: str) -> None:
        if self.last is None:
            raise ConfigError("/retry: nothing has been said yet")
        for column in self.columns:
            column.history = column.history[:-1]
        self.settings = replace(self.settings, seed=self.settings.seed + 1)
        if self.settings.temperature == 0:
            self._tell("temperature is 0, so the answer will be the same; /settings temperature=0.8 changes that")
        self.answer(*self.last)

    def do_settings(self, text: str) -> None:
        changes: dict[str, Any] = {}
        allowed = [f.name for f in fields(SamplingSettings)]
        for part in text.split():
            key, sign, value = part.partition("=")
            if not sign or key not in allowed:
                raise ConfigError(f"/settings {part}: give NAME=VALUE; the names are {', '.join(allowed)}")
            changes[key] = tuple(filter(None, value.split(","))) if key == "stop" else _number(key, value)
        self.settings = replace(self.settings, **changes)
        self._tell(" ".join(f"{key}={_shown(value)}" for key, value in asdict(self.settings).items()))

    def do_system(self, text: str) -> None:
        without = [column.speaker.name for column in self.columns if not column.speaker.has_system]
        if text and without:
            self._tell(f"the template of {', '.join(without)} has no place for a system prompt", "yellow")
        self.system = text
        self._tell("system prompt set" if text else "no system prompt")
        self.do_new("")

    def do_new(self, _: str) -> None:
        for column in self.columns:
            column.history.clear()
        self._tell("a new conversation")

    def do_save(self, text: str) -> None:
        path, new = Path(text or "chat.jsonl").expanduser(), self.said[self.n_saved :]
        try:
            with path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in new)
        except OSError as error:
            raise ConfigError(f"/save {path}: {error.strerror}") from error
        self.n_saved = len(self.said)
        self._tell(f"{_answers(len(new))} added to {path}")

    def _tell(self, text: str, style: str = "dim") -> None:
        self.console.print(text, style=style, markup=False, highlight=False)


def _answers(n: int) -> str:
    return "1 answer" if n == 1 else f"{n} answers"


def _shown(value: Any) -> str:
    """A setting's value as it would be given."""
    return "null" if value is None else ",".join(value) if isinstance(value, tuple) else str(value)


def _number(key: str, value: str) -> Any:
    if value in ("null", "none"):
        return None
    try:
        return float(value) if key in ("temperature", "top_p", "repetition_penalty") else int(value)
    except ValueError as error:
        raise ConfigError(f"/settings {key}={value}: not a number") from error
