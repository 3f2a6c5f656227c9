"""One instruction, every way out: the same prompt ids, and greedily the same answer."""

import io
from pathlib import Path
from typing import Any

import pytest
import torch

from instruct_lit.bundle import chat_template, open_model
from instruct_lit.data.example import Example
from instruct_lit.evaluation.responses import answer, read_jsonl
from instruct_lit.generation.engine import Engine
from instruct_lit.generation.sampling import SamplingSettings
from instruct_lit.model.gguf import write_gguf
from instruct_lit.serving.arena_rounds import Arena
from instruct_lit.serving.chat_loop import Chat
from instruct_lit.serving.conversation import Speaker, open_speakers
from instruct_lit.serving.votes import VoteFile
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
def speaker(small_run: Path) -> Speaker:
    (speaker,) = open_speakers([str(small_run)], None, "cpu")
    return speaker


def example_of(row: dict[str, Any]) -> Example:
    return Example(row["instruction"], "", row["input"])


@pytest.fixture(scope="module")
def wanted(rows: list[dict[str, Any]]) -> list[str]:
    return [row["response"] for row in rows]


def test_evaluate(command: Command, small_run: Path, wanted: list[str], tmp_path: Path) -> None:
    command(
        "evaluate", f"run={small_run}", "generation.max_new_tokens=6", "metrics=[exact_match]", "hydra.run.dir=out",
        cwd=tmp_path,
    )  # fmt: skip
    assert [row["response"] for row in read_jsonl(tmp_path / "out/responses.jsonl")] == wanted


def test_chat(speaker: Speaker, rows: list[dict[str, Any]], wanted: list[str]) -> None:
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

    chat = Chat([speaker], GREEDY, Console(file=io.StringIO()), read)
    chat.run()
    assert [record["output"] for record in chat.said] == wanted


def test_serve(speaker: Speaker, rows: list[dict[str, Any]], wanted: list[str]) -> None:
    openai = pytest.importorskip("openai")
    for module in ("fastapi", "uvicorn", "prometheus_client"):
        pytest.importorskip(module)
    from instruct_lit.serving.http import make_app
    from instruct_lit.serving.scheduler import Scheduler
    from instruct_lit.serving.service import Service
    from instruct_lit.serving.telemetry import Telemetry

    scheduler = Scheduler(Engine(speaker.model, speaker.tokenizer))
    url, stop = run_in_thread(make_app(Service(speaker, scheduler, GREEDY, 60), Telemetry()))
    try:
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            for row, text in zip(rows, wanted, strict=True):
                messages = [{"role": "user", "content": row["instruction"]}]
                found = client.chat.completions.create(
                    model=speaker.name, messages=messages, extra_body={"input": row["input"]}
                )
                assert found.choices[0].message.content == text
                assert found.usage.prompt_tokens == len(speaker.prompt_ids(example_of(row)))
    finally:
        stop()


def test_arena(speaker: Speaker, rows: list[dict[str, Any]], wanted: list[str], tmp_path: Path) -> None:
    arena = Arena([speaker, speaker], GREEDY, VoteFile(tmp_path / "votes.jsonl"))
    for row, text in zip(rows, wanted, strict=True):
        battle = arena.pair(row["instruction"], row["input"])
        for _ in arena.answer(battle):
            pass
        assert battle.answers == [text, text]
    arena.close()


def generated(model: Any, ids: list[int], speaker: Speaker) -> str:
    out = model.generate(
        torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), max_new_tokens=6, do_sample=False,
        pad_token_id=speaker.tokenizer.eot_id,
    )  # fmt: skip
    return speaker.tokenizer.decode([i for i in out[0, len(ids) :].tolist() if i != speaker.tokenizer.eot_id])


def test_transformers_from_the_bundle(
    small_run: Path,
    speaker: Speaker,
    rows: list[dict[str, Any]],
    wanted: list[str],
) -> None:
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(small_run / "bundle")
    tokenizer = transformers.AutoTokenizer.from_pretrained(small_run / "bundle")
    for row, text in zip(rows, wanted, strict=True):
        ours = speaker.prompt_ids(example_of(row))
        if not row["input"]:  # a conversation has no place of its own for an input
            messages = [{"role": "user", "content": row["instruction"]}]
            found = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
            assert list(found["input_ids"]) == ours
        assert generated(model, ours, speaker) == text


def test_answers_of_the_same_rows_by_hand(
    small_run: Path,
    rows: list[dict[str, Any]],
    wanted: list[str],
) -> None:
    """`answer`, which training's test step and benchmarks call, on ids that are encoded here."""
    opened = open_model(small_run)
    ids = [opened.tokenizer.encode(opened.template.prompt(example_of(row))) for row in rows]
    examples = [(i, example_of(row), prompt) for i, (row, prompt) in enumerate(zip(rows, ids, strict=True))]
    found = answer(Engine(opened.model, opened.tokenizer), opened.template, examples, GREEDY)
    assert [row["response"] for row in found] == wanted


def test_gguf(
    small_run: Path,
    speaker: Speaker,
    rows: list[dict[str, Any]],
    wanted: list[str],
    tmp_path: Path,
) -> None:
    pytest.importorskip("gguf")
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    opened = open_model(small_run)
    chat = chat_template(opened.template)
    write_gguf(tmp_path / "m.gguf", opened.model, opened.tokenizer, "f32", "n", chat)  # type: ignore[arg-type]
    model = llama_cpp.Llama(str(tmp_path / "m.gguf"), n_ctx=96, verbose=False)
    for row, text in zip(rows, wanted, strict=True):
        prompt = opened.template.prompt(example_of(row))
        assert model.tokenize(prompt.encode(), add_bos=False) == speaker.prompt_ids(example_of(row))
        assert model.create_completion(prompt, max_tokens=6, temperature=0)["choices"][0]["text"] == text
