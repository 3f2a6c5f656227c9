"""A model as a traced program of `torch.export`, which runs without this package."""

from __future__ import annotations

from pathlib import Path

import torch

from instruct_lit.core.model.gpt import GPT


def write_traced_program(path: Path, model: GPT) -> None:
    """Write the program from token ids `(B, T)` to logits `(B, T, V)`, of any batch size and length."""
    sizes = {
        "input_ids": {0: torch.export.Dim("n_rows"), 1: torch.export.Dim("n_tokens", max=model.config.context_length)}
    }
    with torch.no_grad():
        program = torch.export.export(model.eval(), (torch.zeros(2, 3, dtype=torch.long),), dynamic_shapes=sizes)
    torch.export.save(program, path)
