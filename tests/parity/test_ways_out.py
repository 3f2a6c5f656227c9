"""One instruction, every way out: the same prompt ids, and greedily the same answer."""

import io
from collections.abc import Callable, Sequence
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

import pytest
import torch

import instruct_lit
from instruct_lit.core.bundle import OpenedModel, open_model
from instruct_lit.core.data.encode import Encoder
from instruct_lit.core.data.example import Example
from instruct_lit.core.generation.engine import Engine
from instruct_lit.core.generation.responses import answer
from instruct_lit.core.generation.sampling import SamplingSettings
from instruct_lit.evaluation.answer_files import read_jsonl
from instruct_lit.exporters.formats import to_gguf, to_torch_export
from instruct_lit.serving.arena_rounds import Arena, VoteFile
from instruct_lit.serving.chat_loop import Chat
from instruct_lit.serving.chat_model import ChatModel, open_chat_models
from tests.commands import Command
from tests.serving.conftest import run_in_thread

GREEDY = SamplingSettings(max_new_tokens=6)  # as the run of `small_run` answers


@pytest.fixture(scope="module")
def rows(small_run: Path) -> list[dict[str, Any]]:
    """The test set as training's test step answered it, with and without an input."""
    rows = read_jsonl(small_run / "responses.jsonl")
    assert any(row["input"] for row in rows) and any(not row["input"] for row in rows)
    return rows


@pytest.fixture(scope="module")
def chat_model(small_run: Path) -> ChatModel:
    (chat_model,) = open_chat_models([str(small_run)], None, "cpu")
    return chat_model


def example_of(row: dict[str, Any]) -> Example:
    return Example(row["instruction"], "", row["input"])


@pytest.fixture
def prompts(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The prompt ids of every request that an engine takes from now on."""
    seen: list[list[int]] = []
    prepare = Engine.prepare

    def recording(engine: Engine, prompt_ids: Sequence[int], *settings: Any, **more: Any) -> Any:
        seen.append(list(prompt_ids))
        return prepare(engine, prompt_ids, *settings, **more)

    monkeypatch.setattr(Engine, "prepare", recording)
    return seen


@pytest.fixture(scope="module")
def ids(rows: list[dict[str, Any]], small_run: Path) -> list[list[int]]:
    """The prompts as training encodes them."""
    opened = open_model(small_run)
    encoded = Encoder(opened.template, opened.tokenizer, 96).encode(
        Example(row["instruction"], row["output"], row["input"]) for row in rows
    )
    return [example.prompt_ids for _, example in encoded]


@pytest.fixture(scope="module")
def wanted(rows: list[dict[str, Any]]) -> list[str]:
    return [row["response"] for row in rows]


@pytest.mark.slow
def test_evaluate(command: Command, small_run: Path, wanted: list[str], tmp_path: Path) -> None:
    command(
        "evaluate", f"run={small_run}", "generation.max_new_tokens=6", "metrics=[exact_match]", "hydra.run.dir=out",
        cwd=tmp_path,
    )  # fmt: skip
    assert [row["response"] for row in read_jsonl(tmp_path / "out/responses.jsonl")] == wanted


def test_chat(
    chat_model: ChatModel, rows: list[dict[str, Any]], wanted: list[str], ids: list[list[int]], prompts: list[list[int]]
) -> None:
    from rich.console import Console

    lines = []
    for row in rows:
        given = [f"/input {row['input']}"] if row["input"] else []
        lines += [line.replace("\n", "\\\n") for line in (*given, row["instruction"])]
    script = iter([part for line in lines for part in line.split("\n")])

    def read(_: str) -> str:
        line = next(script, None)
        if line is None:
            raise EOFError
        return line

    chat = Chat([chat_model], GREEDY, Console(file=io.StringIO()), read)
    chat.run()
    assert [record["output"] for record in chat.records] == wanted and prompts == ids


def test_serve(
    chat_model: ChatModel, rows: list[dict[str, Any]], wanted: list[str], ids: list[list[int]], prompts: list[list[int]]
) -> None:
    openai = pytest.importorskip("openai")
    for module in ("fastapi", "uvicorn", "prometheus_client"):
        pytest.importorskip(module)
    from instruct_lit.serving.completions import CompletionService
    from instruct_lit.serving.http import make_app

    engine = Engine(chat_model.model, chat_model.tokenizer)
    url, stop = run_in_thread(make_app(CompletionService(chat_model, engine, GREEDY)))
    try:
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            for row, text in zip(rows, wanted, strict=True):
                messages = [{"role": "user", "content": row["instruction"]}]
                found = client.chat.completions.create(
                    model=chat_model.name, messages=messages, extra_body={"input": row["input"]}
                )
                assert found.choices[0].message.content == text
                assert found.usage.prompt_tokens == len(prompts[-1])
    finally:
        stop()
    assert prompts == ids


def test_arena(
    chat_model: ChatModel,
    rows: list[dict[str, Any]],
    wanted: list[str],
    ids: list[list[int]],
    prompts: list[list[int]],
    tmp_path: Path,
) -> None:
    arena = Arena([chat_model, chat_model], GREEDY, VoteFile(tmp_path / "votes.jsonl"))
    for row, text in zip(rows, wanted, strict=True):
        battle = arena.new_round(row["instruction"], row["input"])
        for _ in arena.answers(battle):
            pass
        assert battle.answers == [text, text]
    arena.close()
    assert prompts[::2] == prompts[1::2] == ids  # each of the two chat_models is asked


def generated(model: Any, ids: list[int], chat_model: ChatModel) -> str:
    out = model.generate(
        torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), max_new_tokens=6, do_sample=False,
        pad_token_id=chat_model.tokenizer.eot_id,
    )  # fmt: skip
    return chat_model.tokenizer.decode([i for i in out[0, len(ids) :].tolist() if i != chat_model.tokenizer.eot_id])


def test_transformers_from_the_bundle(
    small_run: Path, chat_model: ChatModel, rows: list[dict[str, Any]], wanted: list[str], ids: list[list[int]]
) -> None:
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(small_run / "bundle")
    tokenizer = transformers.AutoTokenizer.from_pretrained(small_run / "bundle")
    for row, prompt, text in zip(rows, ids, wanted, strict=True):
        if not row["input"]:  # a conversation has no place of its own for an input
            messages = [{"role": "user", "content": row["instruction"]}]
            found = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
            assert found == prompt
        assert generated(model, prompt, chat_model) == text


@pytest.mark.slow
def test_the_traced_program(
    small_run: Path, chat_model: ChatModel, wanted: list[str], ids: list[list[int]], tmp_path: Path
) -> None:
    to_torch_export(open_model(small_run), tmp_path)
    program = torch.export.load(tmp_path / "model.pt2").module()
    for prompt, text in zip(ids, wanted, strict=True):
        said = list(prompt)
        while len(said) < len(prompt) + 6 and said[-1] != chat_model.tokenizer.eot_id:
            said.append(int(program(torch.tensor([said]))[0, -1].argmax()))
        new = [i for i in said[len(prompt) :] if i != chat_model.tokenizer.eot_id]
        assert chat_model.tokenizer.decode(new) == text


def test_answers_of_the_same_rows_by_hand(
    small_run: Path, rows: list[dict[str, Any]], wanted: list[str], ids: list[list[int]]
) -> None:
    """`answer`, which training's test step and benchmarks call, on ids that are encoded here."""
    opened = open_model(small_run)
    assert ids == [opened.tokenizer.encode(opened.template.prompt(example_of(row))) for row in rows]
    examples = [(i, example_of(row), prompt) for i, (row, prompt) in enumerate(zip(rows, ids, strict=True))]
    found = answer(Engine(opened.model, opened.tokenizer), opened.template, examples, GREEDY)
    assert [row["response"] for row in found] == wanted


@pytest.fixture
def exact_llama(tmp_path: Path) -> Callable[[OpenedModel], Any]:
    """An opened model as llama.cpp opens its GGUF, with a cache of full precision (its own is f16)."""
    pytest.importorskip("gguf")
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")

    def open_it(opened: OpenedModel) -> Any:
        to_gguf(opened, tmp_path, "n", "f32")
        types = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32}
        return llama_cpp.Llama(str(tmp_path / "model-f32.gguf"), n_ctx=256, verbose=False, **types)

    return open_it


def test_gguf(
    small_run: Path,
    rows: list[dict[str, Any]],
    wanted: list[str],
    ids: list[list[int]],
    exact_llama: Callable[[OpenedModel], Any],
) -> None:
    opened = open_model(small_run)
    model = exact_llama(opened)
    for row, ids_of_row, text in zip(rows, ids, wanted, strict=True):
        prompt = opened.template.prompt(example_of(row))
        assert model.tokenize(prompt.encode()) == ids_of_row
        assert model.create_completion(prompt, max_tokens=6, temperature=0)["choices"][0]["text"] == text
        if not row["input"]:  # its own chat, by the template in the file
            messages = [{"role": "user", "content": row["instruction"]}]
            said = model.create_chat_completion(messages, max_tokens=6, temperature=0)
            assert said["choices"][0]["message"]["content"] == text


def test_gguf_of_a_trained_model(
    small_run: Path, rows: list[dict[str, Any]], exact_llama: Callable[[OpenedModel], Any]
) -> None:
    """The ids, since llama-cpp-python drops from a text the bytes that are no character and we show them."""
    opened = open_model(Path(instruct_lit.__file__).parent / "nano", open_model(small_run).template)
    prompts = [opened.tokenizer.encode(opened.template.prompt(example_of(row))) for row in rows]
    found = Engine(opened.model, opened.tokenizer).generate(prompts, SamplingSettings(max_new_tokens=24))
    model = exact_llama(opened)
    for prompt, request in zip(prompts, found, strict=True):
        written = takewhile(lambda i: i != opened.tokenizer.eot_id, model.generate(prompt, temp=0))
        assert list(islice(written, 24)) == request.ids
