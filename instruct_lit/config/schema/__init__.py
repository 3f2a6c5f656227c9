"""The schema of every command: Hydra composes `conf/` into these dataclasses.

A misspelt key, a wrong type or an impossible value fails before anything is downloaded. Each field has its
documentation and its rules beside it (`option`): the help of the commands and docs/reference.md are made from them.
The relations between keys are in `instruct_lit.config.check_training`, `check_data`, `check_lightning` and
`check_commands`.
"""

from instruct_lit.config.schema.commands import (
    ArenaConfig,
    ChatConfig,
    ExportConfig,
    PeekConfig,
    ReportConfig,
    ReproduceConfig,
    ServeConfig,
)
from instruct_lit.config.schema.data import BatchingConfig, DataConfig
from instruct_lit.config.schema.evaluation import (
    BenchmarkConfig,
    EvaluateConfig,
    JudgeConfig,
    LeaksConfig,
    RunConfig,
    SuiteConfig,
)
from instruct_lit.config.schema.generation import GenerationConfig, PathsConfig
from instruct_lit.config.schema.model import AdapterConfig, ModelConfig, TemplateConfig
from instruct_lit.config.schema.options import check, check_values
from instruct_lit.config.schema.training import SchedulerConfig, TrainConfig

COMMANDS: dict[str, type] = {
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
    "benchmark": BenchmarkConfig,
    "peek": PeekConfig,
    "chat": ChatConfig,
    "serve": ServeConfig,
    "arena": ArenaConfig,
    "export": ExportConfig,
    "report": ReportConfig,
    "reproduce": ReproduceConfig,
}

__all__ = [
    "COMMANDS", "AdapterConfig", "ArenaConfig", "BatchingConfig", "BenchmarkConfig", "ChatConfig", "DataConfig",
    "EvaluateConfig", "ExportConfig", "GenerationConfig", "JudgeConfig", "LeaksConfig", "ModelConfig", "PathsConfig",
    "PeekConfig", "ReportConfig", "ReproduceConfig", "RunConfig", "SchedulerConfig", "ServeConfig", "SuiteConfig",
    "TemplateConfig", "TrainConfig", "check", "check_values",
]  # fmt: skip
