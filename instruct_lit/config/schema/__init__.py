"""The schema of every command: Hydra composes `conf/` into these dataclasses.

A misspelt key, a wrong type or an impossible value fails before anything is downloaded. Each field has its
documentation and its rules beside it (`option`): the help of the commands and docs/reference.md are made from them.
The relations between keys are in `instruct_lit.config.check_training`, `check_data` and `check_commands`.
"""

from instruct_lit.config.schema import commands, evaluation, training

COMMANDS: dict[str, type] = {
    "train": training.TrainConfig,
    "evaluate": evaluation.EvaluateConfig,
    "benchmark": evaluation.BenchmarkConfig,
    "peek": commands.PeekConfig,
    "chat": commands.ChatConfig,
    "serve": commands.ServeConfig,
    "arena": commands.ArenaConfig,
    "review": commands.ReviewConfig,
    "export": commands.ExportConfig,
    "report": commands.ReportConfig,
    "reproduce": commands.ReproduceConfig,
}
