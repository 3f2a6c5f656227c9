"""A written model, read by every program installed: python -m instruct_lit.exporters.readers <request> <found>.

Run by `verification.verify` in a process that knows nothing of the model but its files.
"""

import json
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from instruct_lit.core.bundle import open_model
from instruct_lit.core.data.tokenizer import n_shared
from instruct_lit.core.model.causal import best_device
from instruct_lit.exporters.verification import (
    MAX_TOKENS,
    N_NEW,
    OwnModel,
    Reference,
    Tolerance,
    compare_losses,
    losses_of,
    n_new,
)
from instruct_lit.optional_imports import installed


class Reader:
    """A program that has opened the model."""

    def encoded(self, record: Mapping[str, Any]) -> list[int] | None:
        """The ids of an example with its response; None where the program has no such function."""
        return None

    def chat_ids(self, chat: Sequence[Mapping[str, str]]) -> list[int] | None:
        """The prompt ids of a conversation; None where the program has no tokenizer."""
        return None

    def logits(self, ids: Sequence[int]) -> Tensor:
        """The logits `(T, V)`."""
        raise NotImplementedError

    def greedy(self, prompt: Sequence[int], n_new: int) -> list[int]:
        """The ids of the greedy answer."""
        ids = list(prompt)
        for _ in range(n_new):
            ids.append(int(self.logits(ids)[-1].argmax()))
        return ids[len(prompt) :]


class Transformers(Reader):
    """`AutoModelForCausalLM` and `AutoTokenizer`; an adapter through peft on its base model."""

    def __init__(self, folder: Path, base: str | None = None) -> None:
        import transformers

        transformers.utils.logging.set_verbosity_error()
        adapter = folder / "adapter_config.json"
        if base is None:
            base = json.loads(adapter.read_text())["base_model_name_or_path"] if adapter.is_file() else str(folder)
        options: dict[str, Any] = {"trust_remote_code": False}  # without it transformers asks in the terminal
        self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(str(folder), **options)  # nosec B615
        quantized = hasattr(transformers.AutoConfig.from_pretrained(base, **options), "quantization_config")  # nosec B615
        dtype = "auto" if quantized else torch.float32  # quantised weights: in the precision of their file
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=dtype, **options)  # nosec B615
        if adapter.is_file():
            import peft

            model = peft.PeftModel.from_pretrained(model, str(folder))
        self.model = model.eval().to(best_device())

    def chat_ids(self, chat: Sequence[Mapping[str, str]]) -> list[int] | None:
        return self.tokenizer.apply_chat_template(list(chat), add_generation_prompt=True, return_dict=False)

    @torch.inference_mode()
    def logits(self, ids: Sequence[int]) -> Tensor:
        return self.model(input_ids=torch.tensor([ids], device=self.model.device)).logits[0].float().cpu()

    @torch.inference_mode()
    def greedy(self, prompt: Sequence[int], n_new: int) -> list[int]:
        ids = torch.tensor([prompt], device=self.model.device)
        options = {"do_sample": False, "repetition_penalty": 1.0, "max_new_tokens": n_new}
        written = self.model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)
        return written[0, len(prompt) :].tolist()


class LlamaCpp(Reader):
    """llama-cpp-python, with a cache of full precision; with the adapter where there is one."""

    def __init__(self, file: Path, adapter: Path) -> None:
        import llama_cpp
        from llama_cpp.llama_chat_format import Jinja2ChatFormatter

        types = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32}
        options: dict[str, Any] = {"n_ctx": MAX_TOKENS + N_NEW, "logits_all": True, "verbose": False}
        options["lora_path"] = str(adapter) if adapter.is_file() else None
        self.model = model = llama_cpp.Llama(str(file), **options, **types)
        end, start = (model.detokenize([i], special=True).decode() for i in (model.token_eos(), model.token_bos()))
        self.render = Jinja2ChatFormatter(model.metadata["tokenizer.chat_template"], end, start)

    def chat_ids(self, chat: Sequence[Mapping[str, str]]) -> list[int] | None:
        found = self.render(messages=list(chat))
        return self.model.tokenize(found.prompt.encode(), add_bos=not found.added_special, special=True)

    def logits(self, ids: Sequence[int]) -> Tensor:
        self.model.reset()
        self.model.eval(list(ids))
        return torch.from_numpy(self.model.scores[: len(ids)].copy())

    def greedy(self, prompt: Sequence[int], n_new: int) -> list[int]:
        return list(islice(self.model.generate(list(prompt), temp=0), n_new))


class TracedProgram(Reader):
    """The program of `torch.export`, which has no tokenizer."""

    def __init__(self, file: Path) -> None:
        self.program = torch.export.load(file).module()

    @torch.inference_mode()
    def logits(self, ids: Sequence[int]) -> Tensor:
        return self.program(torch.tensor([ids]))[0].float()


def readers_of(folder: Path, base: str | None = None) -> Iterator[tuple[str, Any]]:
    """The name of each program that is installed and reads the folder, and what opens the folder with it."""
    if (folder / "model.pt2").is_file():
        yield "torch.export", lambda: TracedProgram(folder / "model.pt2")
        return
    if files := sorted(folder.glob("model*.gguf")):
        if installed("llama_cpp"):
            yield "llama-cpp-python", lambda: LlamaCpp(files[0], folder / "adapter.gguf")
        return
    if base is None:  # otherwise the adapter's base is on the hub
        yield "instruct-lit", lambda: own_model(folder)
    if installed("transformers"):
        name = "peft" if (folder / "adapter_config.json").is_file() else "transformers"
        yield name, lambda: Transformers(folder, base)


def own_model(folder: Path) -> OwnModel:
    """The model as this program opens it."""
    from instruct_lit.hf import install

    install()
    opened = open_model(folder)
    opened.model.to(best_device())
    return OwnModel(opened.model, opened.tokenizer, opened.template)


def compare(reader: Reader | OwnModel, reference: Reference, tolerance: Tolerance) -> dict[str, Any]:
    """What differs between a reader and the reference, and the reader's losses."""
    problems = []
    pairs = [(reader.encoded(record), ids) for record, ids in zip(reference.records, reference.ids, strict=True)]
    pairs += [(reader.chat_ids(chat), ids) for chat, ids in zip(reference.chats, reference.chat_ids, strict=True)]
    given = [(found, wanted) for found, wanted in pairs if found is not None]
    wrong = [(found, wanted) for found, wanted in given if found != wanted]
    if wrong:
        found, wanted = wrong[0]
        at = n_shared([found, wanted], n_own=0)
        problems.append(
            f"{len(wrong)} of {len(given)} prompts have other ids, from token {at} on: {found[at : at + 8]}, not "
            f"{wanted[at : at + 8]}; is it the same template?"
        )
    losses = losses_of(reader, reference)
    if tolerance.loss is not None:
        problems += filter(None, [compare_losses(losses, reference.losses, tolerance.loss)])
        problems += _other_answers(reader, reference, tolerance)
    return {"losses": losses, "problems": problems}


def _other_answers(reader: Reader | OwnModel, reference: Reference, tolerance: Tolerance) -> Iterator[str]:
    """The greedy answers that differ where the two tokens are not equally likely within the tolerance."""
    for number, (prompt, wanted) in enumerate(zip(reference.prompts, reference.answers, strict=True)):
        answer = reader.greedy(prompt, n_new(prompt, reference.context_length))
        found, wanted = _until_end(answer, reference.ends), _until_end(wanted, reference.ends)
        if found == wanted:
            continue
        at = n_shared([found, wanted], n_own=0)
        logits = reader.logits([*prompt, *wanted[:at]])[-1]
        expected = logits[wanted[at]] if at < len(wanted) else logits[reference.ends].max()
        if logits.max() - expected > tolerance.logit * logits.abs().max():
            there = f"{found[at : at + 8]}, not {wanted[at : at + 8]}"
            yield f"the greedy answer to example {number} differs from token {at} on: {there}"


def _until_end(ids: Sequence[int], ends: Sequence[int]) -> list[int]:
    return list(takewhile(lambda i: i not in ends, ids))


def read_all(folder: Path, reference: Reference, tolerance: Tolerance, base: str | None = None) -> dict[str, Any]:
    """What every program that is installed finds, by its name."""
    found: dict[str, Any] = {}
    for name, open_it in readers_of(folder, base):
        try:
            found[name] = compare(open_it(), reference, tolerance)
        except ImportError:  # the program is not whole, which says nothing about the files
            raise
        except Exception as error:  # unknown files can fail in any way
            message = " ".join(str(error).split())[:200]
            found[name] = {"losses": [], "problems": [f"cannot read it ({type(error).__name__}: {message})"]}
    return found


def main() -> None:
    """Read the reference from a file, and write what was found to another."""
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    reference, tolerance = Reference(**request["reference"]), Tolerance(**request["tolerance"])
    if any(record.get("messages") for record in reference.records):  # calls, results and thoughts as texts
        from instruct_lit.datasets import install

        install()
    found = read_all(Path(request["folder"]), reference, tolerance, request["base"])
    Path(sys.argv[2]).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
