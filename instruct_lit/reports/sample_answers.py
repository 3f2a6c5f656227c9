"""Sample answers in the loggers while a model trains."""

from textwrap import indent
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger

from instruct_lit.core.generation.engine import DECODE_LOOPS, Engine
from instruct_lit.core.generation.sampling import SamplingSettings
from instruct_lit.reports.loggers import log_text, takes_text


class SampleAnswers(Callback):
    """Writes the model's answers to a few validation examples to the loggers at every validation."""

    def __init__(self, n_examples: int = 3, max_new_tokens: int = 64, cuda_graphs: bool = True) -> None:
        self.n_examples, self.make_loops = n_examples, DECODE_LOOPS if cuda_graphs else ()
        self.settings = SamplingSettings(max_new_tokens=max_new_tokens)
        self._engine: Engine | None = None  # kept with its recorded steps

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        loggers = [logger for logger in trainer.loggers if takes_text(logger)]
        if trainer.sanity_checking or not loggers:
            return
        with pl_module.sharding.gathered(pl_module.model):  # type: ignore[union-attr,operator,arg-type]
            if trainer.is_global_zero:
                self._write(trainer, pl_module, loggers)

    def _write(self, trainer: Trainer, pl_module: LightningModule, loggers: list[Logger]) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        store, indices = data.examples_of("val")
        asked = [store.to_answer(int(i)) for i in indices[: self.n_examples]]
        model: Any = pl_module.model
        if self._engine is None or self._engine.model is not model:
            self._engine = Engine(model, data.tokenizer, min(self.n_examples, 32), make_loops=self.make_loops)
        answers = self._engine.generate([prompt for _, _, prompt in asked], self.settings)
        for number, ((_, example, _), answer) in enumerate(zip(asked, answers, strict=True)):
            parts = {"Instruction": example.instruction, "Input": example.input, "Expected": example.output}
            parts["Answer"] = answer.text
            text = "\n\n".join(f"**{title}**\n\n{indent(body, '    ')}" for title, body in parts.items() if body)
            for logger in loggers:
                log_text(logger, f"answers/{number}", text, trainer.global_step)
