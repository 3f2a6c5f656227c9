"""What a written model gives when a fresh process opens it, compared with the model that was written."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from instruct_lit.core.bundle import OpenedModel
from instruct_lit.core.data.encode import Encoder
from instruct_lit.core.data.example import Example
from instruct_lit.core.data.template import Template
from instruct_lit.core.data.tokenizer import Tokenizer
from instruct_lit.core.generation.engine import Engine
from instruct_lit.core.generation.sampling import SamplingSettings
from instruct_lit.core.model.causal import CausalLM, best_device, on_device
from instruct_lit.core.model.pretrained import DTYPES
from instruct_lit.errors import VerificationError
from instruct_lit.evaluation.answer_files import read_jsonl
from instruct_lit.evaluation.remote_model import messages_of
from instruct_lit.evaluation.statistics import interval

N_LOSSES, N_ANSWERS, N_NEW = 8, 4, 32
N_CHANGES = 100  # examples by which the change of the loss of quantised weights is estimated
MAX_TOKENS = 1024  # of an example; the rest of a longer one is not compared
QUESTIONS = ("Name three colours.", "What is the plural of 'cat'?", "Write a sentence about the sea.", "2 + 2 = ?")


@dataclass(frozen=True)
class Tolerance:
    """How far a reader may be from the model that was written.

    `loss`: of an example, absolute and relative; None where a change is only reported. `logit`: by how much the reader
    may prefer its own next token where it differs, as a share of its largest logit.
    """

    loss: float | None = 2e-4
    logit: float = 1e-3


@dataclass(frozen=True)
class Reference:
    """Test examples, and what the model that was written makes of them.

    `chats` and `chat_ids` are conversations and the prompt ids that a chat template has to give for them. `ends` are
    the tokens that end an answer.
    """

    records: list[dict[str, Any]]
    ids: list[list[int]]
    is_response: list[list[bool]]
    losses: list[float]
    answers: list[list[int]]
    chats: list[list[dict[str, str]]]
    chat_ids: list[list[int]]
    ends: list[int]
    context_length: int

    @property
    def prompts(self) -> list[list[int]]:
        """The prompt ids of the examples that are answered."""
        pairs = zip(self.ids, self.is_response, strict=True)
        return [ids[: mask.index(True)] for ids, mask in islice(pairs, N_ANSWERS)]


def reference_of(
    model: CausalLM, tokenizer: Tokenizer, template: Template, examples: Iterable[Example], n_losses: int = N_LOSSES
) -> Reference:
    """The reference values of a model in memory for the first examples, on the fastest device."""
    own = OwnModel(model, tokenizer, template)
    chosen = list(islice(examples, n_losses)) or [Example(question, "I do not know.") for question in QUESTIONS]
    encoded = list(own.encoder.encode(chosen))
    ids, masks = ([getattr(e, part)[:MAX_TOKENS].tolist() for _, e in encoded] for part in ("ids", "is_response"))
    kept = [n for n, mask in enumerate(masks) if any(mask[1:]) and mask.index(True) > 0]
    ids, masks, records = ([values[n] for n in kept] for values in (ids, masks, [e.as_record() for e, _ in encoded]))
    # A conversation has no place for `input`, and chat templates of others leave special tokens in texts unprotected.
    chats = [messages_of({**record, "input": ""}) for record in records[:N_ANSWERS]]
    special = getattr(tokenizer, "special_tokens", None)
    chats = [chat for chat in chats if special is None or not any(special.find(turn["content"]) for turn in chat)]
    ends = [tokenizer.eot_id, *model.end_ids]
    chat_ids, longest = [own.chat_ids(chat) for chat in chats], model.config.context_length
    reference = Reference(records, ids, masks, [], [], chats, chat_ids, ends, longest)
    with on_device(model, best_device()):
        reference.losses.extend(losses_of(own, reference))
        reference.answers.extend(own.greedy(prompt, n_new(prompt, longest)) for prompt in reference.prompts)
    return reference


def n_new(prompt: Sequence[int], context_length: int) -> int:
    """The number of tokens that are compared of an answer."""
    return min(N_NEW, context_length - len(prompt))


class OwnModel:
    """A model of ours as a reader."""

    def __init__(self, model: CausalLM, tokenizer: Tokenizer, template: Template) -> None:
        self.model, self.engine = model, Engine(model, tokenizer)
        self.encoder = Encoder(template, tokenizer, model.config.context_length)

    def encoded(self, record: Mapping[str, Any]) -> list[int]:
        # A turn that is trained on by itself is the last of those that its conversation is trained on in.
        *_, (_, example) = self.encoder.encode([Example.from_record(record)])
        return example.ids[:MAX_TOKENS].tolist()

    def chat_ids(self, chat: Sequence[Mapping[str, str]]) -> list[int]:
        said = [turn["content"] for turn in chat if turn["role"] != "system"]
        history = tuple(zip(said[:-1:2], said[1::2], strict=True))
        system = chat[0]["content"] if chat[0]["role"] == "system" else ""
        return self.encoder.prompt_ids(Example(said[-1], "", system=system, history=history))

    @torch.inference_mode()
    def logits(self, ids: Sequence[int]) -> Tensor:
        self.model.eval()
        states = self.model.hidden_states(torch.tensor([ids], device=self.model.head_weight.device))[0]
        return self.model.logits(states).float().cpu()

    def greedy(self, prompt: Sequence[int], n_new: int) -> list[int]:
        (found,) = self.engine.generate([prompt], SamplingSettings(max_new_tokens=n_new, temperature=0.0))
        return found.ids


def losses_of(reader: Any, reference: Reference) -> list[float]:
    """The mean loss of the response tokens of each example, in nats."""
    losses = []
    for ids, mask in zip(reference.ids, reference.is_response, strict=True):
        at = torch.tensor(mask[1:])
        losses.append(float(F.cross_entropy(reader.logits(ids[:-1])[at], torch.tensor(ids[1:])[at])))
    return losses


@torch.no_grad()
def round_weights(model: CausalLM, dtype: torch.dtype) -> None:
    """Round the weights of a model to the precision in which they were stored, in place."""
    for tensor in model.state_dict().values():
        if tensor.dtype == torch.float32 and dtype != torch.float32:
            tensor.copy_(tensor.to(dtype))


def verify_bundle(
    bundle: Path,
    model: CausalLM,
    trained: Reference,
    make_reference: Callable[[], Reference],
    dtype: torch.dtype | None,
) -> None:
    """Compare a bundle with the trained model, before and after it was merged and rounded to what was stored.

    Args:
        trained: the reference values of the model before it was merged.
        make_reference: those of the model as it is now.
        dtype: of the stored weights, to which the model is rounded; None for an adapter apart from its base.
    """
    # An adapter trained on 4-bit weights: the bundle has those of the base.
    in_4_bits = getattr(getattr(model, "hf", None), "is_loaded_in_4bit", False)
    if dtype is not None and not in_4_bits:
        round_weights(model, dtype)
    reference = make_reference()
    if not in_4_bits and (problem := compare_losses(reference.losses, trained.losses, _ROUNDING[dtype])) is not None:
        raise VerificationError(f"{bundle}: merging or rounding has changed the model: {problem}; it was kept")
    # A fresh process computes in fp32, a model whose frozen weights are in bf16 does not.
    tolerance = TOLERANCES["bf16"] if getattr(model, "is_half", False) else Tolerance()
    _print_readers(bundle, verify(bundle, reference, Tolerance(None) if in_4_bits else tolerance))


def verify_export(
    opened: OpenedModel, folder: Path, to: str, precision: str, base: str | None = None
) -> dict[str, Any]:
    """Compare an exported folder with the opened model, by the examples that its run was tested on.

    Args:
        to: the format.
        precision: of the weights in it; with `to=hf` the model is rounded to it first.
        base: the base model's folder, of an adapter alone.

    Returns: for the model card: the names of the `readers`, the number `n` of examples, and of quantised weights
        the `change` of the loss as an `evaluation.statistics.Interval`.
    """
    tolerance = TOLERANCES.get(precision, Tolerance())
    if to == "hf" and base is None and precision in DTYPES:
        round_weights(opened.model, DTYPES[precision])
    n = N_LOSSES if tolerance.loss is not None else N_CHANGES
    examples = (Example.from_record(row) for row in read_jsonl(opened.directory.parent / "responses.jsonl")[:n])
    reference = reference_of(opened.model, opened.tokenizer, opened.template, examples, n)
    readers = verify(folder, reference, tolerance, base)
    found: dict[str, Any] = {"readers": list(readers), "n": len(reference.losses)}
    if tolerance.loss is not None or not readers:
        _print_readers(folder, readers)
        return found
    *_, by_reader = readers.values()  # of the program that the format is for, where ours reads it as well
    changes = [new - old for new, old in zip(by_reader["losses"], reference.losses, strict=True)]
    found["change"] = change = interval(changes, shares=False)
    bounds = "" if change["low"] is None else f" ({change['low']:+.4f} to {change['high']:+.4f})"
    print(
        f"verified: {folder} gives the same prompts in {', '.join(readers)}; loss {change['mean']:+.4f}{bounds} on "
        f"{change['n']} test examples, against the weights before they were quantised",
        flush=True,
    )
    return found


QUANTISED = ("q8_0", "q4_k_m", "q5_k_m", "int8", "nf4")
# By the precision of the weights; llama.cpp's GELU comes from a table in half precision.
TOLERANCES = {
    "f32": Tolerance(1e-2, 5e-3), "f16": Tolerance(1e-2, 5e-3), "bf16": Tolerance(5e-2, 2e-2),
    **dict.fromkeys(QUANTISED, Tolerance(None)),
}  # fmt: skip


def _print_readers(folder: Path, readers: Mapping[str, Any]) -> None:
    if readers:
        print(f"verified: {folder} gives the same losses, prompts and answers in {', '.join(readers)}", flush=True)
    else:
        print(f"not verified: {folder} is read by llama-cpp-python, which is not installed", flush=True)


# How far merging and rounding may move a loss, by the precision of the stored weights.
_ROUNDING = {None: 1e-3, torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}


def compare_losses(found: Sequence[float], wanted: Sequence[float], tolerance: float) -> str | None:
    """The largest difference of a loss that exceeds the tolerance, as a text."""
    worst = max(range(len(wanted)), key=lambda n: abs(found[n] - wanted[n]), default=None)
    if worst is None or abs(found[worst] - wanted[worst]) <= tolerance * max(1.0, abs(wanted[worst])):
        return None
    return f"the loss of example {worst} is {found[worst]:.5f}, not {wanted[worst]:.5f}"


def verify(folder: Path, reference: Reference, tolerance: Tolerance, base: str | None = None) -> dict[str, Any]:
    """Open a folder in a fresh process, and compare every reader that is installed with the reference.

    What was compared and what was found is written to `verification.json` beside the folder.

    Args:
        base: the base model's folder, of an adapter whose own configuration names it on the hub.

    Returns: for each reader its losses and problems.

    Raises:
        VerificationError: a reader differs, or cannot open the folder; nothing is removed.
    """
    with tempfile.TemporaryDirectory() as place:
        request, found = Path(place) / "request.json", Path(place) / "found.json"
        values = {"folder": str(folder), "base": base, "reference": asdict(reference)}
        values["tolerance"] = asdict(tolerance)
        request.write_text(json.dumps(values, default=str), encoding="utf-8")
        if (device := best_device()).type != "cpu":
            torch.get_device_module(device).empty_cache()  # the process needs the room
        command = [sys.executable, "-m", "instruct_lit.exporters.readers", str(request), str(found)]
        ended = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        if not found.exists():
            last = (ended.stderr.strip().splitlines() or ["no message"])[-1]
            raise VerificationError(
                f"{folder}: not verified: the process ended with status {ended.returncode} ({last})"
            )
        readers: dict[str, Any] = json.loads(found.read_text(encoding="utf-8"))
    report = {"wanted": reference.losses, "readers": readers}
    folder.with_name("verification.json").write_text(json.dumps(report, indent=2) + "\n")
    problems = [f"{name}: {problem}" for name, found_by in readers.items() for problem in found_by["problems"]]
    if problems:
        raise VerificationError(
            f"{folder}: another model than the one that was written; it was kept, do not use it\n  "
            + "\n  ".join(problems)
        )
    return readers
