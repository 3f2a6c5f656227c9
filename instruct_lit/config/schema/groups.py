"""Groups that several commands share: model, adapter, template, data, batching, generation and folders."""

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from instruct_lit.config.schema.options import NO_MAPPING, option, seed_option

DTYPES = ("float32", "bfloat16", "float16")


@dataclass
class ModelConfig:
    """The causal language model that is fine-tuned."""

    name: str = option(MISSING, "Name of the model in reports.")
    kind: str = option("gpt2", "gpt2: ours; hf: any causal model of transformers.", choices=("gpt2", "hf"))
    path: str | None = option(None, "Bundle or Hugging Face directory, in place of the download; hf: or a hub id.")
    repo: str | None = option(None, "Repository on the Hugging Face hub.")
    revision: str | None = option(None, "Branch, tag or commit of the repository.")
    pretrained: bool = option(True, "false: the same architecture with random weights.")
    gguf_file: str | None = option(None, "Name of a GGUF file in the folder or repository, read into fp32 (hf).")
    trust_remote_code: bool = option(False, "Run Python code that the repository contains (hf).")
    new_tokens: list[str] = option([], "Strings of the template that become special tokens (hf).")
    n_layers: int | None = option(12, "Number of transformer blocks (gpt2).", at_least=1, at_most=1024)
    n_heads: int | None = option(12, "Number of attention heads; divides d_model (gpt2).", at_least=1)
    d_model: int | None = option(768, "Width of the residual stream (gpt2).", at_least=1)
    context_length: int | None = option(1024, "Longest sequence in tokens; hf: null is the model's own.", at_least=2)
    dropout: float = option(0.0, "Dropout probability in training.", at_least=0, below=1)
    dtype: str = option(
        "auto",
        "Weights in memory that are not trained (hf); auto: bfloat16 on a GPU that computes in it, where they are "
        "stored in it, else float32. Trained weights are in float32.",
        choices=("auto", "float32", "bfloat16"),
    )
    activation_checkpointing: Any = option(
        False, "Recompute activations in the backward pass to save memory: true, or n for every n-th block."
    )
    liger: bool = option(False, "Compute norms, activations and rotary embeddings with Liger's kernels (hf, CUDA GPU).")
    lr: float = option(5e-5, "Learning rate that suits this model; the default of optimizer.lr.", at_least=0)


@dataclass
class AdapterConfig:
    """Parameter-efficient fine-tuning with peft."""

    kind: str = option(
        "none",
        "none: every weight is trained; lora: low-rank updates (Hu et al. 2021); dora: with magnitudes apart (Liu et "
        "al. 2024); qlora: lora on 4-bit weights (Dettmers et al. 2023).",
        choices=("none", "lora", "dora", "qlora"),
    )
    rank: int = option(16, "Rank of the updates.", at_least=1, at_most=8192)
    alpha: float = option(32, "Updates are scaled by alpha / rank.", above=0, at_most=1e6)
    dropout: float = option(0.0, "Dropout probability on the adapter's input.", at_least=0, below=1)
    targets: Any = option(None, "Suffixes of module names, or a pattern; null: every linear layer of the blocks.")
    merge: bool = option(True, "true: the bundle is an ordinary model; false: it is a peft adapter.")
    lr: float = option(MISSING, "Learning rate of the trained weights; the default of optimizer.lr.", at_least=0)


@dataclass
class TemplateConfig:
    """The prompt template, a Jinja text; the only place where prompt text exists."""

    name: str = option(MISSING, "Name of the template; chat: the one of the model's tokenizer.")
    text: str | None = option(None, "Jinja text with instruction, input, system and response.")
    path: str | None = option(None, "File with the text.")
    next_turn: str | None = option(None, "Jinja text of the further turns of a conversation.")
    variables: Any = option(None, "Variables of template=chat: {enable_thinking: false}.", mapping=True)
    variant: str | None = option(None, "Which of several chat templates of a tokenizer: default, tool_use, rag.")


FORMATS = (
    "auto", "alpaca", "sharegpt", "messages", "history", "prompt_completion", "human_assistant",
    "human_assistant_turns", "glaive", "self_instruct", "open_assistant", "preference", "kto",
)  # fmt: skip


@dataclass
class DataConfig:
    """The data set, its splits, and how examples become token ids."""

    name: str = option(MISSING, "Name of the data set in reports.")
    licence: str | None = option(None, "Licence of the data, for the model card.")
    source: Any = option(MISSING, "Constructor (_target_) that reads the records.")
    sets: Any = option(None, "Mixture: {name: {weight or repeats: …, path: …, data: …}}.", items=NO_MAPPING)
    filters: Any = option(
        None,
        "Filters in order: length, language, near_duplicates, leaks, refusals, function, perplexity, ifd, judge, "
        "diversity.",
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
    columns: Any = option(None, "Fields of the records: {instruction: …, output: …, messages: …}.", mapping=True)
    format: str = option("auto", "Format of the records.", choices=FORMATS)
    key: str | None = option(None, "Key of the records' list in a JSON object; null: its only list of records.")
    header: bool = option(True, "First row of a CSV file names the fields; false: they are 1, 2, …")
    role_marks: Any = option(
        None, 'Texts that begin the turns in a field text: {user: "[INST]", assistant: "[/INST]", none: ["<s>"]}.',
        mapping=True,
    )  # fmt: skip
    think_tags: bool = option(False, "true: <think>…</think> at the start of an answer is read as its thoughts.")
    n_paths: int = option(1, "Paths of each Open Assistant tree that become examples, best ranks first.", at_least=1)
    on_bad_record: str = option("error", "What to do with an invalid record.", choices=("error", "skip"))
    split: Any = option(MISSING, "{train: …, val: …, test: …} as fractions or counts; book: as in LLMs-from-scratch.")
    streaming: bool = option(False, "Read the data while training, never stored as a whole.")
    shuffle_buffer: int = option(10000, "Examples of a stream that are shuffled together.", at_least=1)
    seed: int = seed_option("Seed of the split and of the order of examples.", MISSING)
    batch_size: int = option(8, "Examples per batch and device.", at_least=1)
    eval_batch_size: int | None = option(None, "The same in validation and test; null: batch_size.", at_least=1)
    max_length: int | None = option(None, "Tokens per example with end-of-text; null: the context.", at_least=2)
    mask_prompt: bool = option(True, "Compute the loss on responses only.")
    prompt_weight: float | None = option(
        None, "Weight of prompt tokens in the loss, in place of mask_prompt: 0 masks them, 1 weighs them fully.",
        at_least=0, at_most=1,
    )  # fmt: skip
    loss_on: str = option("all", "Supervised responses of a conversation.", choices=("all", "last"))
    thoughts: str = option("keep", "Thoughts of the assistant that are learnt.", choices=("keep", "drop", "last"))
    on_long: str = option(
        "truncate",
        "What to do with a longer example: cut its last turns, its first turns (truncate_left), drop it, stop.",
        choices=("truncate", "truncate_left", "drop", "error"),
    )
    pad_to: int | None = option(None, "Pad every row to this length (batching=padded).", at_least=1)
    n_workers: int = option(0, "Processes that load batches.", at_least=0)


@dataclass
class BatchingConfig:
    """How examples are arranged in batches; every layout has the same loss and gradient."""

    layout: str = option(
        "padded",
        "padded: one example a row; packed: no padding; auto: packed where that is exact for the model and the lengths "
        "of the data, else padded rows of similar length.",
        choices=("auto", "padded", "packed"),
    )
    grouping: str = option(
        "none",
        "length: examples of similar length share a batch; best_fit: batches of max_tokens tokens.",
        choices=("none", "length", "best_fit"),
    )
    shared_prefix: bool = option(False, "Compute the common beginning of a packed batch once.")
    max_tokens: int | None = option(None, "Tokens per batch in place of data.batch_size (best_fit).", at_least=1)
    pad_to_multiple_of: int = option(1, "Round lengths up, so that shapes recur.", at_least=1, at_most=512)


@dataclass
class GenerationConfig:
    """How responses are generated."""

    max_new_tokens: int = option(256, "Longest response in tokens.", at_least=1)
    temperature: float = option(0.0, "Sampling temperature; 0 is greedy decoding.", at_least=0, at_most=1e6)
    top_k: int | None = option(None, "Sample among the k most likely tokens only.", at_least=1)
    top_p: float | None = option(None, "Sample from the fewest tokens with this total probability.", above=0, at_most=1)
    repetition_penalty: float = option(1.0, "Above 1: tokens that occurred become less likely.", above=0, at_most=1e6)
    seed: int = option(0, "Seed of sampling.", at_least=0, at_most=2**63 - 1)
    stop: list[str] = option([], "Strings that end a response.")
    max_rows: int = option(64, "Responses generated in one batch.", at_least=1, at_most=4096)
    dtype: str | None = option(
        None,
        "Precision of the weights; null: their own; bfloat16: faster on processors with bf16 instructions, rounded.",
        choices=("bfloat16",),
    )
    cuda_graphs: bool = option(
        True, "On a GPU: record steps as CUDA graphs, and read the tokens every 4 to 16 steps; false: every step."
    )


@dataclass
class PathsConfig:
    """Folders."""

    cache: str = option(MISSING, "Downloads and encoded data; also set by the environment variable INSTRUCT_LIT_CACHE.")
    outputs: str = option(MISSING, "Results, a folder for each run.")
