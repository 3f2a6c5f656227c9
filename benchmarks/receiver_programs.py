"""What other programs make of an exported model or of our server: prompt ids and greedy answers, as JSON.

    <python of the environment> benchmarks/receiver_programs.py <program> <request.json>

Imports nothing of this package, only the program. `request.json` has `folder` (a bundle), `gguf` (a file), `url` (of the
server), `chats` (conversations), `prompts` (their ids), `texts` (their text) and `n_new`; `benchmarks/receivers.py` writes
it. What a program does not give is left out of the result: `prompts`, `answers` (ids), `texts` (of answers).
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from itertools import islice
from pathlib import Path
from typing import Any


def transformers(request: dict[str, Any]) -> dict[str, Any]:
    sys.path.insert(0, str(Path(__file__).parent))
    from receiver import receive

    found = receive(request["folder"], request["chats"], request["n_new"])
    return {"version": found["transformers"], "prompts": found["prompts"], "answers": found["answers"]}


def peft(request: dict[str, Any]) -> dict[str, Any]:
    folder = Path(request["folder"]).with_name("adapter")
    return {**transformers({**request, "folder": str(folder)}), "version": _version("peft")}


def litgpt(request: dict[str, Any]) -> dict[str, Any]:
    """Has prompts of its own in place of chat templates, and reads the architectures that it knows by name alone."""
    import shutil

    import torch
    from litgpt import LLM
    from litgpt.scripts.convert_hf_checkpoint import convert_hf_checkpoint

    kind = json.loads((Path(request["folder"]) / "config.json").read_text())["model_type"]
    name = {"llama": "SmolLM2-135M-Instruct"}.get(kind, kind)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(shutil.copytree(request["folder"], Path(place) / name))
        convert_hf_checkpoint(folder, model_name=name)
        model = LLM.load(str(folder), distribute=None)
        model.distribute(accelerator="cpu", precision="32-true")
        texts = [model.prompt_style.apply(chat[0]["content"]) for chat in request["chats"]]
        prompts = [model.preprocessor.encode(text).tolist() for text in texts]
        answers = [
            model.generate(text, max_new_tokens=request["n_new"], temperature=0.0, top_k=1, return_as_token_ids=True)
            for text in (chat[0]["content"] for chat in request["chats"])
        ]
    ids = [answer.tolist() if isinstance(answer, torch.Tensor) else answer for answer in answers]
    return {"version": _version("litgpt"), "prompts": prompts, "answers": ids}


def llama_cpp(request: dict[str, Any]) -> dict[str, Any]:
    import llama_cpp
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    types = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32}
    model = llama_cpp.Llama(request["gguf"], n_ctx=1024, verbose=False, **types)
    end, start = (model.detokenize([i], special=True).decode() for i in (model.token_eos(), model.token_bos()))
    render = Jinja2ChatFormatter(model.metadata["tokenizer.chat_template"], end, start)
    prompts = []
    for chat in request["chats"]:
        found = render(messages=chat)
        prompts.append(model.tokenize(found.prompt.encode(), add_bos=not found.added_special, special=True))
    answers = [list(islice(model.generate(ids, temp=0), request["n_new"])) for ids in request["prompts"]]
    return {"version": llama_cpp.__version__, "prompts": prompts, "answers": answers}


def ctranslate2(request: dict[str, Any]) -> dict[str, Any]:
    import ctranslate2
    from ctranslate2.converters import TransformersConverter
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(request["folder"])
    with tempfile.TemporaryDirectory() as place:
        converted = TransformersConverter(request["folder"]).convert(str(Path(place) / "model"))
        generator = ctranslate2.Generator(converted)
        chats = [
            tokenizer.apply_chat_template(c, add_generation_prompt=True, return_dict=False) for c in request["chats"]
        ]
        answers = [
            generator.generate_batch(
                [tokenizer.convert_ids_to_tokens(ids)], max_length=request["n_new"], sampling_topk=1,
                include_prompt_in_result=False,
            )[0].sequences_ids[0]
            for ids in chats
        ]  # fmt: skip
    return {"version": ctranslate2.__version__, "prompts": chats, "answers": answers}


def onnx(request: dict[str, Any]) -> dict[str, Any]:
    import torch
    from optimum.onnxruntime import ORTModelForCausalLM
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(request["folder"])
    model = ORTModelForCausalLM.from_pretrained(request["folder"], export=True)
    prompts, answers = [], []
    for chat in request["chats"]:
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        inputs = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
        written = model.generate(**inputs, max_new_tokens=request["n_new"], do_sample=False)
        prompts.append(ids)
        answers.append(written[0, len(ids) :].tolist())
    return {"version": _version("optimum-onnx"), "prompts": prompts, "answers": answers}


def inspect_ai(request: dict[str, Any]) -> dict[str, Any]:
    import asyncio

    from inspect_ai.model import ChatMessageUser, GenerateConfig, get_model

    model = get_model(f"openai-api/ours/{request['name']}", base_url=request["url"], api_key="none")
    options = GenerateConfig(temperature=0, max_tokens=request["n_new"])

    async def ask() -> list[Any]:
        return [
            await model.generate([ChatMessageUser(content=c[0]["content"])], config=options) for c in request["chats"]
        ]

    found = asyncio.run(ask())
    n_prompt = [answer.usage.input_tokens for answer in found]
    return {"version": _version("inspect-ai"), "n_prompt": n_prompt, "texts": [a.completion for a in found]}


def vllm(request: dict[str, Any]) -> dict[str, Any]:
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # gigabytes; by default more than a small machine has
    import vllm

    model = vllm.LLM(request["folder"], dtype="float32", enforce_eager=True)
    found = model.chat(request["chats"], vllm.SamplingParams(temperature=0, max_tokens=request["n_new"]))
    prompts, answers = [list(f.prompt_token_ids) for f in found], [list(f.outputs[0].token_ids) for f in found]
    return {"version": vllm.__version__, "prompts": prompts, "answers": answers}


def lm_eval_hf(request: dict[str, Any]) -> dict[str, Any]:
    from lm_eval.models.huggingface import HFLM

    model = HFLM(pretrained=request["folder"], device="cpu", dtype="float32", add_bos_token=False)
    texts = [model.apply_chat_template(chat, add_generation_prompt=True) for chat in request["chats"]]
    prompts = [model.tok_encode(text, add_special_tokens=False) for text in texts]
    return {"version": _version("lm_eval"), "prompts": prompts, "texts": _generated(model, texts, request["n_new"])}


def lm_eval_local_completions(request: dict[str, Any]) -> dict[str, Any]:
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    model = LocalCompletionsAPI(
        base_url=f"{request['url']}/completions", model=request["name"], tokenizer=request["folder"], add_bos_token=False,
        num_concurrent=1, max_retries=1,
    )  # fmt: skip
    return {"version": _version("lm_eval"), "texts": _generated(model, request["texts"], request["n_new"])}


def openai(request: dict[str, Any]) -> dict[str, Any]:
    import openai

    client = openai.OpenAI(base_url=request["url"], api_key="none", max_retries=0)
    options = {"model": request["name"], "max_tokens": request["n_new"], "temperature": 0}
    found = [client.chat.completions.create(messages=chat, **options) for chat in request["chats"]]
    texts = [answer.choices[0].message.content for answer in found]
    return {"version": openai.__version__, "n_prompt": [a.usage.prompt_tokens for a in found], "texts": texts}


def openai_npm(request: dict[str, Any]) -> dict[str, Any]:
    import subprocess

    script = Path(request["environment"]) / "ask.mjs"
    script.write_text("""
import fs from "node:fs";
import OpenAI from "openai";
const request = JSON.parse(fs.readFileSync(0));
const client = new OpenAI({ baseURL: request.url, apiKey: "none", maxRetries: 0 });
const answers = [];
for (const messages of request.chats) {
  const options = { model: request.name, max_tokens: request.n_new, temperature: 0 };
  answers.push(await client.chat.completions.create({ messages, ...options }));
}
const version = JSON.parse(fs.readFileSync("node_modules/openai/package.json")).version;
const texts = answers.map((answer) => answer.choices[0].message.content);
console.log(JSON.stringify({ version, n_prompt: answers.map((answer) => answer.usage.prompt_tokens), texts }));
""")
    given = {"input": json.dumps(request), "capture_output": True, "text": True, "check": True}
    return json.loads(subprocess.run(["node", script.name], cwd=script.parent, **given).stdout)


def litellm(request: dict[str, Any]) -> dict[str, Any]:
    import litellm

    options = {"model": f"openai/{request['name']}", "api_base": request["url"], "api_key": "none", "temperature": 0}
    found = [litellm.completion(messages=chat, max_tokens=request["n_new"], **options) for chat in request["chats"]]
    texts = [answer.choices[0].message.content for answer in found]
    return {"version": _version("litellm"), "n_prompt": [a.usage.prompt_tokens for a in found], "texts": texts}


def langchain_openai(request: dict[str, Any]) -> dict[str, Any]:
    from langchain_openai import ChatOpenAI

    model = ChatOpenAI(
        model=request["name"], base_url=request["url"], api_key="none", temperature=0, max_tokens=request["n_new"]
    )
    found = [model.invoke([(turn["role"], turn["content"]) for turn in chat]) for chat in request["chats"]]
    n_prompt = [answer.usage_metadata["input_tokens"] for answer in found]
    return {"version": _version("langchain-openai"), "n_prompt": n_prompt, "texts": [a.content for a in found]}


def _generated(model: Any, texts: list[str], n_new: int) -> list[str]:
    """Greedy answers of a model of lm-evaluation-harness."""
    from lm_eval.api.instance import Instance

    options = {"max_gen_toks": n_new, "do_sample": False, "temperature": 0.0, "until": []}
    requests = [
        Instance("generate_until", {}, (text, options), number, metadata=(None, None, None))
        for number, text in enumerate(texts)
    ]
    return model.generate_until(requests)


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)


if __name__ == "__main__":
    result = globals()[sys.argv[1]](json.loads(Path(sys.argv[2]).read_text(encoding="utf-8")))
    print("\n" + json.dumps(result))
