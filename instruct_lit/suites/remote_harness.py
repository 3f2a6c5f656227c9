"""A model behind an endpoint as a model of lm-evaluation-harness."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from instruct_lit.evaluation.remote_model import RemoteModel
from instruct_lit.suites.compat_lm_eval import generation_settings, seeded
from instruct_lit.suites.suite import BenchmarkError

if TYPE_CHECKING:
    from lm_eval.api.model import LM
    from lm_eval.api.task import Task


def check_tasks(model: RemoteModel, tasks: Mapping[str, Task]) -> None:
    """Raise BenchmarkError with the first task that needs more than the endpoint gives."""
    for name, task in tasks.items():
        needs = task.OUTPUT_TYPE != "generate_until"
        if needs and model.chat:
            raise BenchmarkError(
                f"suite.tasks={name}: it compares log-probabilities, which a chat API does not give; give "
                "endpoint.chat=false where the server has /completions with echo (vLLM, serve), or tasks with written "
                "answers (ifeval, gsm8k)"
            )
        if task.OUTPUT_TYPE == "loglikelihood_rolling":
            raise BenchmarkError(f"suite.tasks={name}: perplexities of whole texts need a model in this process")
    if any(task.OUTPUT_TYPE != "generate_until" for task in tasks.values()):
        model.score([("The sky is", " blue.")])  # refused before the long work


def remote_model(model: RemoteModel) -> LM:
    """A model for `lm_eval.simple_evaluate`; in chat form a prompt is the messages as JSON."""
    from lm_eval.api.model import LM

    class Remote(LM):
        tokenizer_name = model.judge.endpoint.model

        def chat_template(self, chat_template: bool | str = False) -> str:
            return "that of the server"

        def apply_chat_template(self, chat_history: Any, add_generation_prompt: bool = True) -> str:
            return json.dumps(chat_history)

        def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> list[tuple[float, bool]]:
            return model.score([request.args for request in requests])

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
            raise NotImplementedError("refused by check_tasks")

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
            texts = [request.args[0] for request in requests]
            settings = seeded(texts, [generation_settings(request.args[1]) for request in requests])
            prompts = [json.loads(text) if model.chat else text for text in texts]
            return [reply["text"] for reply in model.write(prompts, settings)]

    return Remote()
