"""python -m instruct_lit.train: fine-tune a GPT to follow instructions, test it, let it answer, and report.

The run itself is `instruct_lit.core.training.run.Run`. Heavy imports follow the checks of the configuration, so that
`--help` and a mistyped override respond at once.
"""

from omegaconf import DictConfig

from instruct_lit.config.compose import run_command


def train(config: DictConfig) -> float | None:
    """Run one training as configured and return the value of `optimized_metric`."""
    from instruct_lit.config.run_builders import run_of

    return run_of(config)()


if __name__ == "__main__":
    run_command("train", train)
