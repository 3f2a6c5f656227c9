"""Training."""

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from instruct_lit.config.schema.evaluation import ForgettingConfig
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
from instruct_lit.config.schema.options import group, option, progress_option, seed_option

OFF = "null switches it off"


@dataclass
class SchedulerConfig:
    """Learning rate over optimizer steps."""

    decay: str = option("cosine", "Decay after the warm-up.", choices=("cosine", "linear", "constant"))
    warmup_steps: int = option(0, "Steps of linear warm-up.", at_least=0)
    min_ratio: float = option(0.0, "Learning rate at the end, as a fraction of optimizer.lr.", at_least=0, at_most=1)


@dataclass
class TrainConfig:
    """Fine-tune a model with early stopping, test it, write its responses and a report."""

    model: ModelConfig = group(ModelConfig, "The model.")
    data: DataConfig = group(DataConfig, "The data set.")
    template: TemplateConfig = group(TemplateConfig, "The prompt template.")
    batching: BatchingConfig = group(BatchingConfig, "The batch layout.")
    adapter: AdapterConfig = group(AdapterConfig, "Parameter-efficient fine-tuning.")
    name: str | None = option(None, "Name of the run in its page and in loggers; by default data-model-time.")
    trainable: str = option("all", "Trained weights: all, head, last_<n>_blocks, or a pattern of parameter names.")
    loss: str = option(
        "cross_entropy",
        "Training loss; dft: each token weighs as much as its probability, without a gradient (Wu et al. 2025).",
        choices=("cross_entropy", "dft"),
    )
    neftune_alpha: float | None = option(None, "Noise on embeddings (NEFTune); often 5.", at_least=0, at_most=1e6)
    compile: bool = option(False, "torch.compile on a GPU; compilation takes about 15 seconds.")
    cuda_graphs: bool | None = option(
        None, "Record micro-batches as CUDA graphs; null: where that is sure to work; true: or fail."
    )
    optimizer: Any = option(MISSING, "Constructor (_target_), with lr and weight_decay.", mapping=True, required=True)
    scheduler: SchedulerConfig = group(SchedulerConfig, "Learning rate over time.")
    callbacks: Any = option(None, "Callbacks by name, each a constructor (_target_) or null.", items=OFF)
    logger: Any = option(None, "Loggers by name, each a constructor (_target_) or null.", items=OFF)
    trainer: Any = option(MISSING, "Arguments of lightning.Trainer; more with a +.", mapping=True, required=True)
    generation: GenerationConfig = group(GenerationConfig, "Generation of the responses.")
    paths: PathsConfig = group(PathsConfig, "Folders.")
    seed: int = seed_option("Seed of everything random.")
    fit: bool = option(True, "false: test and answer only, with the weights of the model or of ckpt_path.")
    ckpt_path: str | None = option(None, "Resume from this checkpoint or run folder; last: from the newest run.")
    bundle_dtype: str | None = option(None, "Weights of the bundle; null: the base model's.", choices=DTYPES)
    verify: bool = option(True, "Reopen the bundle in a fresh process and compare it with the trained model.")
    finder: Any = option(None, "Search in place of training (sweep=lr_range, batch_size).", mapping=True)
    forgetting: ForgettingConfig = group(ForgettingConfig, "What fine-tuning forgets.")
    optimized_metric: str | None = option("val/loss", "Metric that a sweep compares.")
    evaluate_base: bool = option(True, "Also compute loss and responses before fine-tuning.")
    n_test_responses: int | None = option(None, "Answer only the first so many test examples.", at_least=0)
    progress: str = progress_option()
