"""Data and batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from instruct_lit.config.schema.options import MISSING, NO_MAPPING, option, seed_option


@dataclass
class DataConfig:
    """The data set, its splits, and how examples become token ids."""

    name: str = option(MISSING, "Name of the data set in reports.")
    licence: str | None = option(None, "Licence of the data, for the model card.")
    source: Any = option(MISSING, "Constructor (_target_) that reads the records.")
    sets: Any = option(
        None,
        "Mixture: {name: {weight: …, path: …, data: …}}, or repeats in place of weights.",
        mapping=True,
        items=NO_MAPPING,
    )
    filters: Any = option(
        None,
        "Filters in order: length, language, near_duplicates, refusals, function, each a mapping.",
        mapping=True,
        items=NO_MAPPING,
    )
    keep_together: str = option(
        "same_prompt",
        "Which examples are never on both sides of the split.",
        choices=("same_prompt", "near_duplicates", "nothing"),
    )
    path: Any = option(None, "File, list of files or folder of records, in place of the download.", exists="records")
    test_path: Any = option(None, "Separate file of the test split.", exists="records")
    val_path: Any = option(None, "Separate file of the validation split.", exists="records")
    columns: Any = option(
        None, "Field names of the records: {instruction: …, input: …, output: …, messages: …}.", mapping=True
    )
    format: str = option("auto", "Format of the records.", choices=("auto", "alpaca", "sharegpt", "messages"))
    on_bad_record: str = option("error", "What to do with an invalid record.", choices=("error", "skip"))
    split: Any = option(MISSING, "{train: …, val: …, test: …} as fractions or counts; book: as in LLMs-from-scratch.")
    streaming: bool = option(False, "Read the data while training, never stored as a whole.")
    shuffle_buffer: int = option(10000, "Examples of a stream that are shuffled together.", at_least=1)
    seed: int = seed_option("Seed of the split and of the order of examples.", MISSING)
    batch_size: int = option(8, "Examples per batch and device.", at_least=1)
    eval_batch_size: int | None = option(None, "The same in validation and test; null: batch_size.", at_least=1)
    max_length: int | None = option(None, "Tokens per example with end-of-text; null: the context.", at_least=2)
    mask_prompt: bool = option(True, "Compute the loss on responses only.")
    loss_on: str = option("all", "Supervised responses of a conversation.", choices=("all", "last"))
    on_long: str = option(
        "truncate", "What to do with an example above max_length.", choices=("truncate", "drop", "error")
    )
    pad_to: int | None = option(None, "Pad every row to this length (batching=padded).", at_least=1)
    n_workers: int = option(0, "Processes that load batches.", at_least=0)


@dataclass
class BatchingConfig:
    """How examples are arranged in batches; every layout has the same loss and gradient."""

    layout: str = option("padded", "padded: one example a row; packed: no padding.", choices=("padded", "packed"))
    grouping: str = option(
        "none",
        "length: examples of similar length share a batch; best_fit: batches of max_tokens tokens.",
        choices=("none", "length", "best_fit"),
    )
    shared_prefix: bool = option(False, "Compute the common beginning of a packed batch once.")
    max_tokens: int | None = option(None, "Tokens per batch in place of data.batch_size (best_fit).", at_least=1)
    pad_to_multiple_of: int = option(
        1, "Round lengths up to a multiple of this, so that few shapes occur.", at_least=1, at_most=512
    )
