"""The terminal chat with scripted lines: modes, commands, columns, and Ctrl-C."""

import io
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from instruct_lit.core.data.example import Example
from instruct_lit.core.data.records import FileSource
from instruct_lit.core.data.template import Template
from instruct_lit.core.generation.sampling import SamplingSettings
from instruct_lit.errors import printable
from instruct_lit.serving.chat_loop import HELP, Chat
from instruct_lit.serving.chat_model import ChatModel
from instruct_lit.serving.word_wrap import WordWrapper
from tests.serving.conftest import ALPACA, CHAT, greedy, tiny_chat_model


def talk(lines: Iterable[str | type[BaseException]], *chat_models: ChatModel, width: int = 80) -> tuple[Chat, str]:
    """What a chat of these lines shows; an exception in place of a line is raised."""
    script = iter(lines)

    def read(_: str) -> str:
        line = next(script, EOFError)
        if not isinstance(line, str):
            raise line
        return line

    out = io.StringIO()
    chat = Chat(chat_models, SamplingSettings(max_new_tokens=10), Console(file=out, width=width), read)
    chat.run()
    return chat, out.getvalue()


@pytest.fixture(scope="module")
def turns() -> ChatModel:
    return tiny_chat_model(CHAT, name="turns")


def answer_to(chat_model: ChatModel, example: Example) -> str:
    return greedy(chat_model, chat_model.prompt_ids(example), 10)


def test_every_line_is_an_instruction_with_an_input_if_one_was_given(chat_model: ChatModel) -> None:
    chat, out = talk(["Name a colour.", "/input red\\", "blue", "Choose.", "Again."], chat_model)
    expected = [Example("Name a colour.", ""), Example("Choose.", "", "red\nblue"), Example("Again.", "")]
    assert [record["output"] for record in chat.records] == [answer_to(chat_model, example) for example in expected]
    assert "tiny (single instructions)" in out and "3 responses not saved (/save)" in out
    assert all(record["output"].splitlines()[0] in out for record in chat.records)


def test_a_conversation_remembers_and_a_new_one_does_not(turns: ChatModel) -> None:
    chat, out = talk(["/system Be brief.", "Hello", "And?", "/new", "And?"], turns)
    first = answer_to(turns, Example("Hello", "", system="Be brief."))
    second = answer_to(turns, Example("And?", "", system="Be brief.", history=(("Hello", first),)))
    third = answer_to(turns, Example("And?", "", system="Be brief."))
    assert [record["output"] for record in chat.records] == [first, second, third] and second != third
    assert (
        "(conversation)" in out
        and "system prompt set\nnew conversation" in out
        and chat.records[1]["history"] == [["Hello", first]]
    )


def test_the_prompt_shown_is_that_of_training(chat_model: ChatModel, turns: ChatModel) -> None:
    _, out = talk(["/input x", "/prompt What?", "What?", "/prompt"], chat_model)
    assert out.count("Q: What? (x)") == 2 and f"{len(chat_model.prompt_ids(Example('What?', '', 'x')))} tokens" in out
    _, out = talk(["/prompt", "Hello", "/prompt"], turns)
    assert "/prompt: there is no last instruction" in out and "U: Hello\nB: " in out and out.count("U: Hello") == 1


def test_settings_and_retry(chat_model: ChatModel, turns: ChatModel) -> None:
    chat, out = talk(
        ["/settings temperature=1.5 top_k=50 stop=a,b", "Why?", "/retry", "/retry", "/settings top_k=null"], chat_model
    )
    assert len({record["output"] for record in chat.records}) > 1
    assert [record["settings"]["seed"] for record in chat.records] == [0, 1, 2]
    assert chat.settings.stop == ("a", "b") and chat.settings.top_k is None and "temperature=1.5" in out
    chat, out = talk(["Why?", "/retry"], turns)
    assert chat.records[0]["output"] == chat.records[1]["output"] and chat.records[1].get("history") is None
    assert "the response will be the same" in out


def test_a_refused_line_leaves_the_conversation_unchanged(turns: ChatModel) -> None:
    chat, out = talk(["Hello", "word " * 300, "/retry", "And?"], turns)
    first = answer_to(turns, Example("Hello", ""))
    assert [record["output"] for record in chat.records[:2]] == [first, first]
    assert chat.records[2]["history"] == [["Hello", first]] and out.count("error: ") == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/settings colour=1", "/settings colour=1: unknown; give NAME=VALUE with one of max_new_tokens, temperature"),
        ("/settings top_k=many", "/settings top_k=many: not a whole number"),
        ("/settings seed=null", "/settings seed=null: not a whole number; give one, or null for top_k and top_p"),
        ("/settings top_p=x", "/settings top_p=x: not a number; give one, or null"),
        ("/settings top_p=7", "generation.top_p=7.0: must be null or above 0 and at most 1"),
        ("/retry it", "/retry it: /retry takes no text; give the text in a line of its own"),
        ("/new Hello", "/new Hello: /new takes no text"),
        ("/help me", "/help me: /help takes no text"),
        ("/quit now", "/quit now: /quit takes no text"),
        ("/sing", "/sing: unknown command; /help lists them"),
        ("/retry", "/retry: there is no last instruction"),
        ("/save no/such/folder/x", "No such file or directory"),
        ("/save ~nobody-here/x", "/save ~nobody-here/x: Could not determine home directory"),
        ("/save a\0b", "/save a\\x00b: embedded null byte"),
        ("word " * 300, "a prompt has"),
    ],
)
def test_errors_are_shown_and_the_chat_continues(chat_model: ChatModel, line: str, message: str) -> None:
    chat, out = talk([line, "Hello"], chat_model, width=200)
    assert message in out and len(chat.records) == 1


def test_a_warning_for_a_system_prompt_without_a_place(chat_model: ChatModel, turns: ChatModel) -> None:
    chat, out = talk(["/system Be brief.", "Hello"], chat_model, turns)
    assert "the template of tiny has no place for a system prompt" in out
    assert [record.get("system") for record in chat.records] == [None, "Be brief."]


def test_empty_answers_are_not_saved(tmp_path: Path) -> None:
    """Training refuses them, also in the history of a conversation."""
    file = tmp_path / "saved.jsonl"
    lines = ["One?", "/settings max_new_tokens=0", "Two?", "/settings max_new_tokens=3", "Three?", f"/save {file}"]
    _, out = talk([*lines, "/new", "Four?", f"/save {file}", "/quit"], tiny_chat_model(CHAT))
    said = "".join(out.split())
    assert "1responseappendedto" in said and ";2leftout:anemptyanswerisnottrainedon" in said
    assert [example.instruction for example in FileSource(str(file))] == ["One?", "Four?"]


def test_saved_records_can_be_trained_on(chat_model: ChatModel, tmp_path: Path) -> None:
    file = tmp_path / "saved.jsonl"
    _, out = talk(["One?", f"/save {file}", "Two?", f"/save {file}", "/quit", "never"], chat_model)
    records = [json.loads(line) for line in file.read_text().splitlines()]
    assert [record["instruction"] for record in records] == ["One?", "Two?"] and out.count("1 response appended") == 2
    assert "not saved" not in out


def test_two_models_answer_in_columns(chat_model: ChatModel) -> None:
    other = tiny_chat_model(ALPACA, seed=5, name="other")
    chat, out = talk(["Name a colour."], chat_model, other)
    expected = [answer_to(s, Example("Name a colour.", "")) for s in (chat_model, other)]
    assert [record["output"] for record in chat.records] == expected and expected[0] != expected[1]
    heads = next(line for line in out.splitlines() if "tiny" in line and "other" in line and "┃" in line)
    assert heads.index("other") in range(37, 46)
    table = [line for line in out.splitlines() if "│" in line or "╇" in line]
    assert max(map(len, table)) == 78, "two columns are free for the ^C of a terminal"


def interrupting(chat_model: ChatModel, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Ctrl-C in the fourth step of the first answer."""
    from instruct_lit.core.generation.engine import Engine

    step, n_steps = Engine.step, iter(range(10**6))

    def stepping(engine: Engine) -> object:
        if next(n_steps) == 3:
            raise KeyboardInterrupt
        return step(engine)

    monkeypatch.setattr(Engine, "step", stepping)
    return monkeypatch.undo


def test_ctrl_c_stops_an_answer_and_not_the_chat(chat_model: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupting(chat_model, monkeypatch)
    chat, out = talk(["One?", KeyboardInterrupt, "Two?"], chat_model)
    assert "(stopped)" in out and "Ctrl-D or /quit ends the chat" in out
    assert [record["finish_reason"] for record in chat.records] == ["cancelled", "length"]
    assert chat.records[1]["output"] == answer_to(chat_model, Example("Two?", ""))
    whole = answer_to(chat_model, Example("One?", ""))
    assert whole.startswith(chat.records[0]["output"].rstrip("\ufffd")) and chat.records[0]["output"] != whole


def test_ctrl_c_in_a_command_does_not_end_the_chat(chat_model: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Chat, "do_new", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    chat, out = talk(["/new", "One?"], chat_model)
    assert "Ctrl-D or /quit ends the chat" in out and len(chat.records) == 1


def test_a_last_line_that_ends_with_a_backslash_is_answered(chat_model: ChatModel) -> None:
    chat, _ = talk(["One?\\"], chat_model)
    assert [record["instruction"] for record in chat.records] == ["One?\n"]


def test_an_answer_that_is_cut_off_is_shown_as_such(turns: ChatModel) -> None:
    _, out = talk(["One?"], turns)
    assert "(cut off: max_new_tokens=10; /settings max_new_tokens=20)" in out
    _, out = talk(["/settings max_new_tokens=500", "One?"], turns, width=200)
    assert "(cut off: the context is full; /new starts a new conversation)" in out
    _, out = talk(["One?"], turns, turns, width=200)
    assert out.count("(turns: cut off: max_new_tokens=10;") == 2


def test_lines_are_single_instructions_with_alpaca_unless_configured_otherwise() -> None:
    alpaca = tiny_chat_model(Template("alpaca", CHAT.text, next_turn="U: {{ instruction }}\nB: {{ response }}"))
    chat, _ = talk(["Hello", "And?"], alpaca)
    assert "history" not in chat.records[1]
    lines = iter(["Hello", "And?", "/quit"])
    chat = Chat([alpaca], chat.settings, Console(file=io.StringIO()), lambda _: next(lines), conversation=True)
    chat.run()
    assert chat.records[1]["history"][0][0] == "Hello"


def test_names_and_answers_cannot_change_the_terminal() -> None:
    """Markup, emoji codes and control characters of a model's name, of its template and of its answer are text."""
    template = Template("t", "\x1b[2JQ :cross_mark: [red]{{ instruction }}[/red]\nA: {{ response }}")
    models = [
        tiny_chat_model(template, seed, name) for seed, name in enumerate(["[bold]a[/]", "[/x]:red_heart:b\x1b[31m"])
    ]
    for model in models:
        model.tokenizer.decode = lambda ids: "\x1b[1A\rx\x9b2J [/red] :cross_mark:" if ids else ""  # type: ignore[method-assign]
    for shown in (models[:1], models[1:], models):
        _, out = talk(["Hello", "/prompt Hi", "/system x"], *shown)
        assert not set(out) & {"\x1b", "\r", "\x9b"}
        if len(shown) == 1:  # columns are folded
            flat = out.replace("\n", "")
            assert "\\x1b[1A\\x0dx\\x9b2J [/red] :cross_mark:" in flat
            assert printable(shown[0].name) in flat


def test_thoughts_are_dim_and_stay_in_the_prompt_where_training_had_them(monkeypatch: pytest.MonkeyPatch) -> None:
    thinking = "<think>\nHm.\n</think>\n\nYes."
    for name, kept in (("", True), ("{#- thoughts: last +#}", False)):
        model = tiny_chat_model(Template("own", name + CHAT.text, CHAT.text), name="own")
        chat = Chat([model], SamplingSettings(max_new_tokens=10), Console(file=io.StringIO(), width=80), lambda _: "")
        column = chat.columns[0]
        monkeypatch.setattr(column, "texts", lambda column=column: iter([thinking[:3], thinking]))
        styles: list[tuple[str, str | None]] = []
        monkeypatch.setattr(
            WordWrapper, "write", lambda _, text, style=None, styles=styles: styles.append((text, style))
        )
        monkeypatch.setattr(column.engine, "enqueue", lambda _: SimpleNamespace(text=thinking, finish_reason="stop"))
        chat.answer("Is it?", "")
        assert [one for one in styles if one[0]] == [("<th", "dim"), ("ink>\nHm.\n</think>", "dim"), ("\n\nYes.", None)]
        assert column.history == [("Is it?", thinking if kept else "Yes.")]


def test_notes_in_a_file_are_whole_lines(turns: ChatModel) -> None:
    _, out = talk(["/help"], turns, width=30)
    assert all(line in out.splitlines() for line in HELP.strip().splitlines())
