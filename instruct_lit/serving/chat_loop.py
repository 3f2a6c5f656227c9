"""The terminal chat: streamed responses of one or several models, and commands that begin with a slash."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import chain
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from instruct_lit.core.data.example import Example, Turn
from instruct_lit.core.data.template import CHAT
from instruct_lit.core.generation.engine import Engine
from instruct_lit.core.generation.request import Request
from instruct_lit.core.generation.sampling import SamplingSettings
from instruct_lit.errors import ConfigError, InstructLitError, printable
from instruct_lit.evaluation.answer_parts import n_thoughts
from instruct_lit.serving.chat_model import ChatModel
from instruct_lit.serving.scheduler import stable_text
from instruct_lit.serving.word_wrap import WordWrapper

HELP = """\
Every line is an instruction, or the next turn of a conversation; a backslash
at its end continues it on the next line.
  /input TEXT      set the input of the next instruction (Alpaca records)
  /prompt [TEXT]   show the last prompt, or that of TEXT, as the model sees it
  /retry           repeat the last instruction with the next seed
  /settings [K=V]  show or change them: /settings temperature=0.7 top_k=9
  /system [TEXT]   set the system prompt; without TEXT remove it
  /new             start a new conversation
  /save [FILE]     append the chat to FILE (chat.jsonl) as training records
  /help, /quit     Ctrl-C stops a response, Ctrl-D ends the chat"""


_CONVERT: dict[str, Callable[[str], Any]] = {  # of the values of /settings, whole numbers by default
    "stop": lambda text: tuple(filter(None, text.split(","))), "temperature": float, "top_p": float,
    "repetition_penalty": float,
}  # fmt: skip


@dataclass
class Column:
    """A model of the chat with its engine, its own history, and its current request.

    With `is_conversation` earlier turns are part of the prompt.
    """

    chat_model: ChatModel
    engine: Engine
    is_conversation: bool
    history: list[Turn] = field(default_factory=list)
    request: Request | None = None

    def texts(self) -> Iterator[str]:
        """The text of the request that no later token changes, after every step."""
        while self.request is not None and self.request.finish_reason is None:
            self.engine.step()
            yield stable_text(self.request)

    def stop(self) -> None:
        """Cancel the request if it is unfinished."""
        if self.request is not None and self.request.finish_reason is None:
            self.engine.cancel(self.request)


class Chat:
    """Reads lines until the end of the input and prints the models' responses; `records` has one for every response.

    Args:
        read: returns the next line for a prompt sign; may raise EOFError and KeyboardInterrupt.
        conversation: whether a line is a further turn rather than an instruction of its own. None decides by the
            template: Alpaca's are for single instructions, though they have a form for further turns.
        engine_options: see `Engine`; it has one row.
    """

    def __init__(
        self,
        chat_models: Sequence[ChatModel],
        settings: SamplingSettings,
        console: Console,
        read: Callable[[str], str],
        conversation: bool | None = None,
        **engine_options: Any,
    ) -> None:
        self.columns = []
        for chat_model in chat_models:
            turns = not chat_model.template.name.startswith("alpaca") if conversation is None else conversation
            engine = Engine(chat_model.model, chat_model.tokenizer, **{**engine_options, "max_rows": 1})
            self.columns.append(Column(chat_model, engine, turns and chat_model.template.has_turns))
        self.settings, self.console, self.read = settings, console, read
        self.system, self.input = "", ""
        self.last: tuple[str, str] | None = None  # instruction and input
        self.records: list[dict[str, Any]] = []
        self.n_saved = 0

    def run(self) -> None:
        """Chat until /quit or the end of the input."""
        names = ", ".join(column.chat_model.name for column in self.columns)
        modes = {"conversation" if column.is_conversation else "single instructions" for column in self.columns}
        self._print(f"{names} ({' and '.join(sorted(modes))}); /help lists the commands")
        while True:
            try:
                line = self._line()
                if line.strip() in ("/quit", "/exit"):
                    break
                if line.startswith("/"):
                    self._command(line)
                elif line.strip():
                    self.answer(line, self.input)
                    self.input = ""
            except KeyboardInterrupt:
                self._print("\nCtrl-D or /quit ends the chat")
            except EOFError:
                break
            except InstructLitError as error:
                self._print(f"error: {error}", "red")
        if self.records[self.n_saved :]:
            self._print(f"{_responses(len(self.records) - self.n_saved)} not saved (/save)")

    def answer(self, instruction: str, input_text: str) -> None:
        """Stream every model's response; Ctrl-C keeps the text so far."""
        examples = [self._example(column, instruction, input_text, column.history) for column in self.columns]
        for column, example in zip(self.columns, examples, strict=True):
            prompt, settings = column.chat_model.prompt_ids(example), column.chat_model.with_stops(self.settings)
            try:
                column.request = column.engine.enqueue(column.engine.prepare(prompt, settings))
            except InstructLitError as error:
                for other in self.columns:
                    other.stop()
                hint = "; /new starts a new conversation" if column.history else ""
                raise ConfigError(f"{column.chat_model.name}: {error}{hint}") from error
        self.last, stopped = (instruction, input_text), False
        try:
            self._stream_one(*self.columns) if len(self.columns) == 1 else self._stream_columns()
        except KeyboardInterrupt:
            stopped = True
        for column, example in zip(self.columns, examples, strict=True):
            column.stop()
            self._record(column, example)
            if column.request is not None and column.request.finish_reason == "length":
                n, name = len(column.request.ids), f"{column.chat_model.name}: " if len(self.columns) > 1 else ""
                full = "the context is full; /new starts a new conversation"
                more = f"max_new_tokens={n}; /settings max_new_tokens={2 * n or 256}"
                self._print(f"({name}cut off: {full if n < self.settings.max_new_tokens else more})")
        if stopped:
            self._print("(stopped)")

    def _stream_one(self, column: Column) -> None:
        n_shown, output = 0, WordWrapper(self.console)
        try:
            for text in column.texts():
                n = max(n_shown, n_thoughts(text))
                output.write(text[n_shown:n], "dim")
                output.write(text[n:])
                n_shown = len(text)
        finally:
            output.end()

    def _stream_columns(self) -> None:
        texts = [column.texts() for column in self.columns]
        try:
            with Live(console=self.console, transient=True, auto_refresh=False) as live:
                while sum(next(text, None) is not None for text in texts):  # a step of every model
                    live.update(self._table(), refresh=True)
        finally:
            self.console.print(self._table())

    def _table(self) -> Table:
        # Two columns stay free for the ^C that a terminal shows: in the next line it would leave a part of the table.
        table = Table(width=self.console.width - 2, show_edge=False, pad_edge=False)
        for column in self.columns:
            table.add_column(Text(printable(column.chat_model.name)), ratio=1, overflow="fold")
        answers = [stable_text(column.request) if column.request else "" for column in self.columns]
        parts = [(a[: n_thoughts(a)], a[n_thoughts(a) :]) for a in answers]
        table.add_row(*(Text.assemble((printable(thoughts), "dim"), printable(text)) for thoughts, text in parts))
        return table

    def _record(self, column: Column, example: Example) -> None:
        assert column.request is not None
        answered = replace(example, output=column.request.text)
        about = {"model": column.chat_model.name, "finish_reason": column.request.finish_reason}
        self.records.append({**answered.as_record(), **about, "settings": asdict(self.settings)})
        if column.is_conversation:
            user = f"{example.instruction}\n\n{example.input}" if example.input else example.instruction
            # A template that keeps the thoughts of earlier turns was trained with them.
            template, output = column.chat_model.template, answered.output
            if n_thoughts(output) and (template.name == CHAT or template.thoughts != "keep"):
                output = output[n_thoughts(output) :].strip()
            column.history.append((user, output))

    def _example(self, column: Column, instruction: str, input_text: str, history: Sequence[Turn]) -> Example:
        system = self.system if column.chat_model.template.has_system else ""
        return Example(instruction, "", input_text, system=system, history=tuple(history))

    def _line(self) -> str:
        line = self.read("> ")
        while line.endswith("\\"):
            line = line[:-1] + "\n"
            with suppress(EOFError):
                line += self.read(". ")
        return line

    def _command(self, line: str) -> None:
        name, _, text = line[1:].partition(" ")
        if text.strip() and name in ("help", "new", "retry", "quit", "exit"):
            raise ConfigError(f"/{name} {text.strip()}: /{name} takes no text; give the text in a line of its own")
        command = getattr(self, f"do_{name}", None)
        if command is None:
            raise ConfigError(f"/{name}: unknown command; /help lists them")
        command(text.strip())

    def do_help(self, _: str) -> None:
        self._print(HELP)

    def do_input(self, text: str) -> None:
        self.input = text
        self._print("input of the next instruction set" if text else "input removed")

    def do_prompt(self, text: str) -> None:
        shown = (text, self.input) if text else self.last
        if shown is None:
            raise ConfigError("/prompt: there is no last instruction; give a TEXT")
        for column in self.columns:
            # The last instruction's own turn is in the history by now.
            history = column.history if text or not column.is_conversation else column.history[:-1]
            ids = column.chat_model.prompt_ids(self._example(column, *shown, history))
            self._print(f"{column.chat_model.name}: {len(ids)} tokens of {column.chat_model.context_length}")
            self.console.out(printable(column.chat_model.tokenizer.decode(ids)), highlight=False)

    def do_retry(self, _: str) -> None:
        if self.last is None:
            raise ConfigError("/retry: there is no last instruction; type one")
        for column in self.columns:
            column.history = column.history[:-1]
        self.settings = replace(self.settings, seed=self.settings.seed + 1)
        if self.settings.temperature == 0:
            self._print("temperature is 0, so the response will be the same; change it with /settings temperature=0.8")
        self.answer(*self.last)

    def do_settings(self, text: str) -> None:
        changes: dict[str, Any] = {}
        allowed = [f.name for f in fields(SamplingSettings)]
        for part in text.split():
            key, sign, value = part.partition("=")
            if not sign or key not in allowed:
                raise ConfigError(f"/settings {part}: unknown; give NAME=VALUE with one of {', '.join(allowed)}")
            is_null = key in ("top_k", "top_p") and value in ("null", "none")
            try:
                changes[key] = None if is_null else _CONVERT.get(key, int)(value)
            except ValueError as error:
                kind = "number" if key in _CONVERT else "whole number"
                raise ConfigError(f"/settings {part}: not a {kind}; give one, or null for top_k and top_p") from error
        self.settings = replace(self.settings, **changes)
        self._print(" ".join(f"{key}={_shown(value)}" for key, value in asdict(self.settings).items()))

    def do_system(self, text: str) -> None:
        without = [column.chat_model.name for column in self.columns if not column.chat_model.template.has_system]
        if text and without:
            self._print(f"the template of {', '.join(without)} has no place for a system prompt", "yellow")
        self.system = text
        self._print("system prompt set" if text else "system prompt removed")
        self.do_new("")

    def do_new(self, _: str) -> None:
        for column in self.columns:
            column.history.clear()
        self._print("new conversation")

    def do_save(self, text: str) -> None:
        new = self.records[self.n_saved :]
        whole = [r for r in new if all(map(str.strip, chain([r["output"]], *r.get("history", ()))))]
        try:
            path = Path(text or "chat.jsonl").expanduser()
            with path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in whole)
        except (OSError, RuntimeError, ValueError) as error:  # no such user's folder, or no possible name
            raise ConfigError(f"/save {text or 'chat.jsonl'}: {getattr(error, 'strerror', error)}") from error
        self.n_saved = len(self.records)
        empty = f"; {len(new) - len(whole)} left out: an empty answer is not trained on" if whole != new else ""
        self._print(f"{_responses(len(whole))} appended to {path}{empty}")

    def _print(self, text: str, style: str = "dim") -> None:
        whole = not self.console.is_terminal  # in a file lines are not broken
        self.console.print(printable(text), style=style, markup=False, emoji=False, highlight=False, soft_wrap=whole)


def _responses(n: int) -> str:
    return "1 response" if n == 1 else f"{n} responses"


def _shown(value: Any) -> str:
    """The value of a setting in the form that /settings takes."""
    return "null" if value is None else ",".join(value) if isinstance(value, tuple) else str(value)
