"""The memory that fine-tuning takes on a GPU, counted on a CPU: every tensor of a step by its size, while it is alive.

    python -m benchmarks.saved_memory --json benchmarks/results/saved-memory.json
    python -m benchmarks.saved_memory --only "1.24B, all weights" --kept

The tensors have no values (`instruct_lit.accel.estimate.counting`), so an 8B model needs no memory. The batches are
those of the table of figures, all examples of average length. TRL is transformers' model and peft's adapters with TRL
1.16's loss, whose logits exist in tiles; `liger` is what the kernels of Liger 0.8.5 keep. What
kernels and the allocator take themselves is not counted.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks import common, gpu
from instruct_lit.accel.compat_torch import LiveTensors
from instruct_lit.accel.estimate import StepMemory, batch_loss, counting, in_four_bits, our_step, step_memory
from instruct_lit.core.data.batching import Batch
from instruct_lit.core.model.causal import CausalLM

TILE = 4096, 32768  # positions and vocabulary of TRL's tile of logits
SHAPES = gpu.SHAPES | {"llama2-7b": (4096, 11008, 32, 32, 32, 32000, False)}
SHOWN = 14  # kinds of kept tensors


@dataclass(frozen=True)
class Row:
    """A model and a batch; `system` names what is trained how, as in `benchmarks.systems`."""

    name: str
    shape: str
    system: str
    n_examples: int = 32
    n_tokens: int = 202  # of an example
    n_learnt: int = 151
    longest: int = 530  # of a padded batch, the mean over batches of the answers of GPT-4
    n_prefix: int = 24  # shared
    checkpointing: int = 0
    rank: int = 16


def rows() -> Iterator[Row]:
    """The rows of the table of figures, ours and its peers."""
    for name, shape in (("1.24B", "llama-1b"), ("135M", "smollm2-135m")):
        for trained, words in (("all weights", ""), ("LoRA", " lora frozen")):
            systems = [
                "ours",
                "ours liger",
                "ours compiled",
                "trl wrapped liger",
                "trl padded liger",
                "transformers padded",
            ]
            yield from (Row(f"{name}, {trained}, {system}", shape, system + words) for system in systems)
    long = Row("", "llama-8b", "", n_examples=16, n_tokens=512, n_learnt=450, longest=512)
    lora, qlora = replace(long, system="ours lora frozen"), replace(long, system="ours qlora", n_examples=2)
    for kind, row in (("LoRA, 16 of 512 tokens", lora), ("QLoRA, 2 of 512 tokens", qlora)):
        for n in (0, 4, 2, 1):
            suffix = f", activation_checkpointing={n}" if n else ""
            yield replace(row, name=f"8B, {kind}, ours{suffix}", checkpointing=n)
    yield replace(lora, name="8B, LoRA, 16 of 512 tokens, ours compiled", system="ours compiled lora frozen")
    yield replace(lora, name="8B, LoRA, 16 of 512 tokens, trl wrapped liger", system="trl wrapped liger lora frozen")
    yield from rows_of_others()


def rows_of_others() -> Iterator[Row]:
    """The settings of figures that others published: full rows, every token learnt."""
    torchtune = Row("", "llama-8b", "", n_examples=2, n_tokens=2048, n_learnt=2047, n_prefix=0, rank=8)
    unsloth = Row("", "llama2-7b", "", n_examples=4, n_tokens=1024, n_learnt=1023, n_prefix=0, rank=8)
    for other, row, size in (("torchtune", torchtune, "8B"), ("Unsloth", unsloth, "7B")):
        for kind, system in (("LoRA", "ours compiled lora frozen"), ("QLoRA", "ours compiled qlora")):
            for n in (0, 1):
                suffix = f", activation_checkpointing={n}" if n else ""
                yield replace(row, name=f"as {other}: {size}, {kind}{suffix}", system=system, checkpointing=n)


class KeptTensors(LiveTensors):
    """Knows for each tensor which line made it."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[int, tuple[str, int]] = {}

    def add(self, tensor: Tensor) -> bool:
        if not super().add(tensor):
            return False
        storage = tensor.untyped_storage()
        self.made[storage._cdata] = f"{str(tensor.dtype).removeprefix('torch.')} {_line()}", storage.nbytes()
        return True

    def drop(self, key: int) -> None:
        self.made.pop(key, None)
        super().drop(key)


def _line() -> str:
    """The innermost line outside torch, or the number of one in a compiled graph."""
    frame: Any = sys._getframe(2)
    while frame is not None:
        file = frame.f_code.co_filename
        if "/torch/" not in file and not file.endswith(("compat_torch.py", "saved_memory.py")):
            return f"{Path(file).name}:{frame.f_lineno} {frame.f_code.co_name}"
        frame = frame.f_back
    return ""


def count(row: Row, kept: Counter[str] | None = None) -> StepMemory:
    """The memory of a step; `kept` gets the bytes that each line keeps."""
    import transformers

    width, mlp, n_layers, n_heads, n_of_keys, n_vocab, tied = SHAPES[row.shape]
    shape = transformers.LlamaConfig(
        hidden_size=width, intermediate_size=mlp, num_hidden_layers=n_layers, num_attention_heads=n_heads,
        num_key_value_heads=n_of_keys, vocab_size=n_vocab, tie_word_embeddings=tied, max_position_embeddings=2048,
    )  # fmt: skip
    words, live = row.system.split(), KeptTensors()
    dtype = torch.bfloat16 if {"frozen", "qlora"} & set(words) else torch.float32
    with ExitStack() as stack:
        batch = _batch(row)
        stack.enter_context(counting(on_gpu=True))
        hf = transformers.AutoModelForCausalLM.from_config(shape, dtype=dtype)
        if "liger" in words:
            _put_liger(stack)
        model: torch.nn.Module
        if words[0] == "ours":
            model = ours = _ours(hf, row, words)
            step = our_step(ours, bf16=True, compiled="compiled" in words)
            loss_of = lambda: batch_loss(step, batch, bf16=True)  # noqa: E731
        else:
            model, loss_of = _peer(hf, row, words, stack)

        def watched() -> Tensor:
            before = set(live.made)
            loss = loss_of()
            for key, (line, n_bytes) in live.made.items():
                if kept is not None and key not in before:
                    kept[line] += n_bytes
            return loss

        memory = step_memory(model, watched, live)
    return memory


def _batch(row: Row) -> Batch:
    n_own = row.n_tokens - row.n_prefix
    n, m = row.n_examples * n_own + row.n_prefix, row.n_examples * row.n_learnt
    ids, pairs = torch.zeros(n, dtype=torch.long), torch.zeros(m, dtype=torch.long)
    of_examples = torch.zeros(row.n_examples, dtype=torch.long)
    return Batch(
        of_examples, ids, ids, pairs, pairs, pairs.float(), pairs > 0, (n_own,) * row.n_examples, row.n_prefix, m,
        row.n_examples * row.n_tokens, 0,
    )  # fmt: skip


def _ours(hf: Any, row: Row, words: list[str]) -> CausalLM:
    from instruct_lit.hf.adapters import Adapter
    from instruct_lit.hf.model import HFModel
    from instruct_lit.hf.trainable import train_in_fp32

    model = HFModel(hf, None, row.checkpointing)
    if {"lora", "qlora"} & set(words):
        Adapter(model, rank=row.rank)
        train_in_fp32(model)
    if "qlora" in words:
        in_four_bits(model)
    return model


def _peer(hf: Any, row: Row, words: list[str], stack: ExitStack) -> tuple[torch.nn.Module, Callable[[], Tensor]]:
    """A model of transformers with its loss: as TRL computes it, or with all logits."""
    # Whether rows are packed is read from the positions, which have no values.
    stack.enter_context(patch("transformers.masking_utils.find_packed_sequence_indices", lambda *_: None))
    model = hf.train()
    if "lora" in words:
        from peft import LoraConfig, get_peft_model

        adapter = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(hf, adapter)
    n = row.n_examples * (row.longest if "padded" in words else row.n_tokens)
    size = (row.n_examples, row.longest) if "padded" in words else (-(-n // 1024), 1024)
    ids, learnt = torch.zeros(size, dtype=torch.long), torch.zeros(row.n_examples * row.n_learnt, dtype=torch.long)
    mask = torch.ones(size[0], 1, size[1], size[1], dtype=torch.bool) if "padded" in words else None

    def loss_of() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            if words[0] == "transformers":
                return model(input_ids=ids, attention_mask=mask, labels=ids, use_cache=False).loss
            states = hf.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
            states = states[:, :-1].flatten(0, 1).index_select(0, learnt)
            return _TiledHead.apply(states, hf.lm_head.weight).sum()

    return model, loss_of


def _put_liger(stack: ExitStack) -> None:
    """Let Llamas keep what Liger's kernels keep; queries and keys are rotated where they lie."""
    from transformers.models.llama import modeling_llama

    stack.enter_context(patch.object(modeling_llama.LlamaRMSNorm, "forward", lambda m, x: _Norm.apply(x, m.weight)))
    swiglu = lambda m, x: m.down_proj(_SwiGLU.apply(m.gate_proj(x), m.up_proj(x)))  # noqa: E731
    stack.enter_context(patch.object(modeling_llama.LlamaMLP, "forward", swiglu))
    stack.enter_context(patch.object(modeling_llama, "apply_rotary_pos_emb", lambda q, k, *_, **__: (q, k)))


class _Norm(torch.autograd.Function):
    """Liger's RMSNorm keeps its input; the gradient overwrites that of the output."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(x, weight, torch.empty(x.shape[:-1]))
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None]:  # type: ignore[override]
        return grad, torch.empty_like(ctx.saved_tensors[1]) if ctx.needs_input_grad[1] else None


class _SwiGLU(torch.autograd.Function):
    """Liger's activation keeps its inputs, which the gradients overwrite."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(gate, up)
        return torch.empty_like(gate)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return ctx.saved_tensors


class _TiledHead(torch.autograd.Function):
    """TRL's loss keeps states, computes tiles of the logits in both passes, and sums gradients in fp32."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(states, weight)
        _ = torch.empty(TILE, dtype=torch.bfloat16), weight[: TILE[1]].to(torch.bfloat16)
        return torch.empty(len(states))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None]:  # type: ignore[override]
        states, weight = ctx.saved_tensors
        of_states, _ = torch.empty(states.shape), torch.empty(TILE, dtype=torch.bfloat16)
        of_weight = torch.empty(weight.shape) if ctx.needs_input_grad[1] else None
        _ = weight[: TILE[1]].to(torch.bfloat16)
        return of_states.to(states.dtype), of_weight


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="rows whose name contains this text")
    parser.add_argument("--kept", action="store_true", help="also the lines that keep most for the backward pass")
    parser.add_argument("--json", type=Path, default=None, help="where the figures are written")
    args = parser.parse_args()
    found: dict[str, dict[str, float]] = {}
    print("| counted, GB | weights, gradients, moments | kept by the forward pass | peak |")
    print("|---|---|---|---|")
    for row in (row for row in rows() if args.only in row.name):
        kept: Counter[str] = Counter()
        start = time.monotonic()
        torch.compiler.reset()  # it compiles a function for few kinds of models only
        memory = count(row, kept)
        found[row.name] = {"seconds": round(time.monotonic() - start, 1), **vars(memory)}
        figures = [f"{n / 1e9:.1f}" for n in (memory.states, memory.kept, memory.peak)]
        print(f"| {row.name} | {' | '.join(figures)} |", flush=True)
        n_tokens = row.n_examples * (row.n_tokens - row.n_prefix) + row.n_prefix
        for line, n_bytes in kept.most_common(SHOWN) if args.kept else ():
            print(f"    {n_bytes / n_tokens / SHAPES[row.shape][2]:8,.0f} bytes per token and layer: {line}")
    common.write_json(args.json, {"rows": found})


if __name__ == "__main__":
    main()
