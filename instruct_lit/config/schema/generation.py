"""Generation, and the folders that every command has."""

from __future__ import annotations

from dataclasses import dataclass

from instruct_lit.config.schema.options import MISSING, option


@dataclass
class GenerationConfig:
    """How responses are generated."""

    max_new_tokens: int = option(256, "Longest response in tokens.", at_least=1)
    temperature: float = option(0.0, "Sampling temperature; 0 is greedy decoding.", at_least=0, at_most=1e6)
    top_k: int | None = option(None, "Sample among the k most likely tokens only.", at_least=1)
    top_p: float | None = option(
        None, "Sample from the smallest set of tokens with this total probability.", above=0, at_most=1
    )
    repetition_penalty: float = option(
        1.0, "Above 1: tokens that have occurred become less likely.", above=0, at_most=1e6
    )
    seed: int = option(0, "Seed of sampling.", at_least=0, at_most=2**63 - 1)
    stop: list[str] = option([], "Strings that end a response.")
    max_rows: int = option(64, "Responses generated in one batch.", at_least=1, at_most=4096)
    dtype: str | None = option(
        None,
        "Precision of the weights; null: their own; bfloat16: faster on processors with bf16 instructions, rounded.",
        choices=("bfloat16",),
    )


@dataclass
class PathsConfig:
    """Folders."""

    cache: str = option(MISSING, "Downloads and encoded data; also set by the environment variable INSTRUCT_LIT_CACHE.")
    outputs: str = option(MISSING, "Results, a folder for each run.")
