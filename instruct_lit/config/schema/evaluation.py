"""Evaluation and benchmarks."""

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from instruct_lit.config.schema.groups import DataConfig, GenerationConfig, PathsConfig, TemplateConfig
from instruct_lit.config.schema.options import group, option, progress_option, seed_option

SPLITS = ("train", "val", "test")
FORMATS = ("table", "csv", "markdown", "latex", "json")
ENGINE = "What computes: this program, or vLLM in this process, where it is installed."
FORMAT = "Form of the figures on standard output; other than table, everything else goes to standard error."


@dataclass
class ApiConfig:
    """A model behind an API."""

    url: str | None = option(None, "Root of the API; of OpenAI-compatible ones it mostly ends in /v1.")
    model: str | None = option(None, "Name of the model; of a local judge its directory.")
    api_key_env: str | None = option(None, "Environment variable with the API key, which is never stored.")
    n_concurrent: int = option(8, "Requests at the same time.", at_least=1, at_most=1024)
    n_retries: int = option(5, "Retries of a failed request, with growing pauses.", at_least=0)
    timeout_s: float = option(120.0, "Timeout of a request in seconds.", above=0)
    body: Any = option(None, "Further fields of the request; a null value removes one.", mapping=True)


@dataclass
class EndpointConfig(ApiConfig):
    """A model behind an OpenAI-compatible API: vLLM, llama.cpp, Ollama, a hosted one; endpoint=<url> is its url."""

    chat: bool = option(True, "Send messages; false: prompts to /completions, which may give log-probabilities.")


@dataclass
class JudgeConfig(ApiConfig):
    """A language model that scores or compares responses, or scores from a file."""

    name: str = option(MISSING, "Where the scores come from.", choices=("openai", "ollama", "local", "scores"))
    gguf_file: str | None = option(None, "Name of a GGUF file in the directory (local).")
    n_ctx: int | None = option(None, "Context length; Ollama silently truncates longer prompts.", at_least=1)
    path: str | None = option(None, "JSON list or JSON lines of one score per response (scores).")
    prompt: str = option("reference", "A file of conf/judge/prompts (reference, rubric) or a path.")
    pairwise_prompt: str = option("pairwise", "The same for comparisons.")
    scale: list[int] = option([0, 100], "Lowest and highest score.")
    explain: bool = option(False, "Ask for a sentence of reasoning before the score.")
    temperature: float = option(0.0, "Sampling temperature of the judge.", at_least=0)
    max_tokens: int = option(256, "Longest reply in tokens.", at_least=1)
    seed: int = seed_option("Seed of the judge.", 0)
    constrained: bool = option(True, "Constrain replies to a JSON schema where the judge supports it.")
    n_asks: int = option(3, "Attempts until a reply can be parsed; then it counts as unparsed.", at_least=1)
    max_unparsed: float = option(0.5, "Largest share of unparsed verdicts with a score.", at_least=0, at_most=1)
    paid: bool = option(False, "Requests cost money unless the server is on this machine: ask for confirmation.")
    confirmed: bool = option(False, "Use a paid judge without asking for confirmation.")
    usd_per_million_tokens: list[float] | None = option(None, "[prompt, reply]; null: a dated table for OpenAI.")
    panel: list[Any] | None = option(None, "Further judges: mappings with keys in which each differs from this one.")
    combine: str = option("mean", "How a panel's verdicts on a response become one.", choices=("mean", "majority"))
    audit: int | None = option(None, "Write so many judged responses, at random, to audit.jsonl.", at_least=1)
    calibrate: str | None = option(None, "Scores to compare with, of people or a judge, one each.", exists="file")


@dataclass
class LeaksConfig:
    """Search for evaluated examples in the training data."""

    enabled: bool = option(True, "Search for them.")
    train: str | None = option(None, "File of training records; null: those of the run.", exists="file")
    near: bool | None = option(None, "Near-duplicates too (extra `filters`); null: where it is installed.")


@dataclass
class ForgettingConfig:
    """Loss on general text, and on request a benchmark, after fine-tuning and before."""

    enabled: bool = option(True, "Compute it.")
    path: str | None = option(None, "Text file with paragraphs; null: one in the package, by model.", exists="file")
    n_texts: int = option(32, "Only the first so many paragraphs.", at_least=1)
    suite: str | None = option(None, "A benchmark of lm-evaluation-harness too, a name of `suite`: ifeval, quick.")
    limit: int | None = option(None, "The first so many items of each of its tasks; null: as in the suite.", at_least=1)
    data_dir: str | None = option(None, "Offline copy of the hub with folders <owner>/<name>.", exists="folder")


@dataclass
class EvaluateConfig:
    """Let a finished model answer a data set, and score the responses."""

    run: Any = option(None, "One model or a list: run folder, bundle or Hugging Face directory.", exists="run")
    responses: str | None = option(None, "In place of run: existing responses (.jsonl, .json, .csv).", exists="file")
    compare: list[str] | None = option(None, "In place of both: two or more runs or files.", exists="records")
    endpoint: EndpointConfig = group(EndpointConfig, "A model behind an API, beside run or in its place.")
    response_field: str = option("response", "Field of the response in that file; output: it has no wanted answers.")
    metrics: list[str] = option([], "Names of instruct_lit.evaluation.metrics; the first is returned to a sweep.")
    engine: str = option("own", ENGINE, choices=("own", "vllm"))
    check_function: str | None = option(None, "Python file with check(record), a further check.", exists="file")
    reviews: str | None = option(None, "People's labels: records with id, label and reviewer.", exists="file")
    by: list[str] = option([], "Fields to group the first metric, loss and perplexity by; also input, length.")
    judge: JudgeConfig | None = option(None, "A judge that scores the responses.")
    leaks: LeaksConfig = group(LeaksConfig, "Evaluated examples in the training data.")
    forgetting: ForgettingConfig = group(ForgettingConfig, "What the run's model has forgotten of its base.")
    data: DataConfig | None = option(None, "The data set; null: that of the run.")
    template: TemplateConfig | None = option(None, "The prompt template; null: that of the bundle.")
    generation: GenerationConfig = group(GenerationConfig, "Generation of the responses.")
    paths: PathsConfig = group(PathsConfig, "Folders.")
    split: str = option("test", "Split that is answered.", choices=SPLITS)
    n_responses: int | None = option(None, "Answer only the first so many examples.", at_least=1)
    format: str = option("table", FORMAT, choices=FORMATS)
    seed: int = seed_option("Seed of confidence intervals and sampling.")
    progress: str = progress_option()


@dataclass
class SuiteConfig:
    """A public benchmark."""

    name: str = option(MISSING, "Name of the suite.")
    system: str = option(
        "lm_eval",
        "Library that runs it.",
        choices=("lm_eval", "mt_bench", "arena_hard", "helm", "openai_evals", "alpaca_eval", "arena"),
    )
    tasks: list[str] = option([], "Tasks or groups of the library.")
    folders: list[str] = option([], "Folders of lm-eval's tasks that are read.")
    groups: dict[str, str] = option({}, "Task → heading under which the report lists it.")
    n_shot: int | None = option(None, "Examples in the prompt; null: the task's own number.", at_least=0)
    limit: int | None = option(None, "Only the first so many items of each task.", at_least=1)
    mean_over: str = option("tasks", "What the mean score weights equally.", choices=("tasks", "items"))
    runs_code: bool = option(False, "The suite runs code that the model writes.")
    options: dict[str, Any] = option({}, "Settings of the library.")


@dataclass
class RunConfig:
    """How a benchmark is run."""

    limit: int | None = option(None, "The first so many items of each task; null: as in the suite.", at_least=1)
    n_shot: int | None = option(None, "Examples in the prompt; null: as the suite has it.", at_least=0)
    template: str = option("both", "on: through the model's template; off: bare text.", choices=("on", "off", "both"))
    base: bool = option(True, "Also the model that a run started from, with the bare text.")
    leaks: bool = option(True, "Report items in a run's training data, and the scores without them.")
    data_dir: str | None = option(None, "Offline copy of the hub with folders <owner>/<name>.", exists="folder")
    on_missing: str = option("error", "skip: run the tasks whose data exist.", choices=("error", "skip"))
    allow_code: bool = option(False, "Run code that the model writes (humaneval).")
    max_rows: int = option(16, "Responses generated in one batch.", at_least=1)
    cuda_graphs: bool = option(True, "As generation.cuda_graphs.")


@dataclass
class BenchmarkConfig:
    """Run finished models through a public benchmark."""

    run: Any = option(None, "One model or a list: run folder, bundle or Hugging Face directory.", exists="run")
    endpoint: EndpointConfig = group(EndpointConfig, "A model behind an API, beside run or in its place.")
    suite: SuiteConfig = group(SuiteConfig, "The benchmark.")
    engine: str = option("own", ENGINE, choices=("own", "vllm"))
    benchmark: RunConfig = group(RunConfig, "How it is run.")
    judge: JudgeConfig | None = option(None, "The judge of mt_bench and arena_hard.")
    format: str = option("table", FORMAT, choices=FORMATS)
    template: TemplateConfig | None = option(None, "The prompt template; null: that of the bundle.")
    paths: PathsConfig = group(PathsConfig, "Folders.")
    progress: str = progress_option()
