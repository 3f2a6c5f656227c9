"""Chapter 7's own code, from a checkout of LLMs-from-scratch (github.com/rasbt/LLMs-from-scratch, Apache-2.0)."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from benchmarks import common
from instruct_lit.core.data.tokenizer import GPT2Tokenizer


class Tokenizer:
    """Our tokenizer behind tiktoken's signatures, so that no vocabulary is fetched."""

    def __init__(self) -> None:
        self.tokenizer = GPT2Tokenizer()

    def encode(self, text: str, allowed_special: Any = ()) -> list[int]:
        return self.tokenizer.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids)


def book(checkout: Path) -> SimpleNamespace:
    """The names of the chapter's two files."""
    folder = checkout / "ch07" / "01_main-chapter-code"
    if not (folder / "gpt_instruction_finetuning.py").is_file():
        raise SystemExit(f"--ch07 {checkout}: no checkout of LLMs-from-scratch there")
    sys.path.insert(0, str(folder))
    # The download of OpenAI's weights needs TensorFlow; here the weights are random.
    downloads: Any = ModuleType("gpt_download")
    downloads.download_and_load_gpt2 = None
    sys.modules["gpt_download"] = downloads
    import gpt_instruction_finetuning
    import previous_chapters

    return SimpleNamespace(**{**vars(previous_chapters), **vars(gpt_instruction_finetuning)})


def model_of(names: SimpleNamespace, model: str) -> Any:
    """The book's GPT in the shape of one of our models, random weights."""
    import torch

    torch.manual_seed(123)
    n_layers, n_heads, d_model = common.shape_of(model)
    return names.GPTModel(
        {
            "vocab_size": 50257, "context_length": 1024, "drop_rate": 0.0, "qkv_bias": True,
            "emb_dim": d_model, "n_layers": n_layers, "n_heads": n_heads,
        }
    )  # fmt: skip


def train(checkout: Path, data: Path, model: str, batch_size: int, clock: common.Clock) -> common.Memory:
    """Run the book's training loop on the book's loader until the clock has seen enough."""
    import torch

    names = book(checkout)
    memory = common.Memory(clock.device)
    dataset = names.InstructionDataset(common.records_of(data), Tokenizer())
    loader = torch.utils.data.DataLoader(
        dataset, batch_size, shuffle=True, drop_last=True, collate_fn=names.custom_collate_fn
    )
    network = model_of(names, model).to(clock.device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.00005, weight_decay=0.1)
    watched = _Watched(loader, clock)
    try:
        names.train_model_simple(
            network, watched, loader, optimizer, clock.device,
            num_epochs=100, eval_freq=10**9, eval_iter=1, start_context="", tokenizer=Tokenizer(),
        )  # fmt: skip
    except _Enough:
        pass
    return memory


class _Enough(Exception):
    """The steps to be timed are done."""


class _Watched:
    """A loader that ticks whenever the loop comes back for the next batch; the evaluation at step 0 is no step."""

    def __init__(self, loader: Any, clock: common.Clock) -> None:
        self.loader, self.clock, self.depth = loader, clock, 0

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        self.depth += 1
        if self.depth > 1:
            self.depth -= 1
            yield from self.loader
            return
        for batch in self.loader:
            yield batch
            self.clock.tick()
            if self.clock.n_ticks == self.clock.last:
                raise _Enough
        self.depth -= 1


def generate(names: SimpleNamespace, network: Any, ids: list[int], max_new_tokens: int) -> list[int]:
    """The book's decoding loop, greedy, without a cache."""
    import torch

    text = torch.tensor([ids], device=next(network.parameters()).device)
    out = names.generate(
        model=network, idx=text, max_new_tokens=max_new_tokens, context_size=1024, eos_id=GPT2Tokenizer().eot_id
    )
    return out[0, len(ids) :].tolist()
