"""vLLM in process, played by a module that computes with our own decoder: the same answers and log-likelihoods."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from instruct_lit.config.check_commands import check_command
from instruct_lit.core.data.tokenizer import GPT2Tokenizer
from instruct_lit.core.generation.engine import Engine
from instruct_lit.core.generation.sampling import SamplingSettings
from instruct_lit.core.model.gpt import GPT
from instruct_lit.errors import ConfigError
from instruct_lit.evaluation.vllm_engine import VLLMEngine
from instruct_lit.suites.evaluated_model import EvaluatedModel
from instruct_lit.suites.scoring import log_likelihoods
from tests.configs import composed


@dataclass
class SamplingParams:
    """Those of vLLM that are used, with its defaults."""

    max_tokens: int = 16
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    repetition_penalty: float = 1.0
    prompt_logprobs: int | None = None
    detokenize: bool = True
    stop: list[str] = field(default_factory=list)
    stop_token_ids: list[int] = field(default_factory=list)


@pytest.fixture
def vllm(tiny_model: GPT, tokenizer: GPT2Tokenizer, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module with the part of vLLM's interface that is used."""

    class LLM:
        def __init__(self, **arguments: Any) -> None:
            self.arguments = arguments
            module.opened.append(arguments)

        def generate(self, prompts: Sequence[dict], params: Any, use_tqdm: bool) -> list[Any]:
            each = params if isinstance(params, list) else [params] * len(prompts)
            return [self.one(prompt["prompt_token_ids"], own) for prompt, own in zip(prompts, each, strict=True)]

        def one(self, ids: list[int], own: SamplingParams) -> Any:
            assert len(ids) + own.max_tokens <= self.arguments["max_model_len"]  # vLLM refuses more
            settings = SamplingSettings(own.max_tokens, own.temperature, stop=tuple(own.stop))
            found = Engine(tiny_model, tokenizer).generate([ids], settings)[0]
            stopped_by = next((stop for stop in own.stop if stop in tokenizer.decode(found.ids)), None)
            output = SimpleNamespace(token_ids=found.ids, finish_reason=found.finish_reason, stop_reason=stopped_by)
            return SimpleNamespace(outputs=[output], prompt_logprobs=own.prompt_logprobs and logprobs(ids))

    def logprobs(ids: list[int]) -> list[Any]:
        with torch.no_grad():
            hidden = tiny_model.hidden_states(torch.tensor([ids]))[0]
            rows = torch.log_softmax(hidden @ tiny_model.head_weight.T, -1)
        return [None] + [
            {token: SimpleNamespace(logprob=float(row[token]), rank=int((row > row[token]).sum()) + 1)}
            for row, token in zip(rows, ids[1:], strict=False)
        ]

    module: Any = ModuleType("vllm")
    module.LLM, module.SamplingParams, module.__version__, module.opened = LLM, SamplingParams, "0.0", []
    monkeypatch.setitem(sys.modules, "vllm", module)
    return module


PROMPTS = ["one two", "the river is a long", "x"]


def test_answers_and_their_ends_are_ours(tiny_model: GPT, tokenizer: GPT2Tokenizer, vllm: Any, tmp_path: Path) -> None:
    engine = VLLMEngine(tiny_model, tokenizer, tmp_path)
    assert vllm.opened[0]["dtype"] == "float32" and vllm.opened[0]["model"] == str(tmp_path)
    own, long = Engine(tiny_model, tokenizer), " word" * (tiny_model.config.context_length - 3)
    ids = [tokenizer.encode(text) for text in (*PROMPTS[:2], long)]
    third = tokenizer.decode(own.generate(ids[:1], SamplingSettings(4))[0].ids[2:3])
    # The context ends the answer to the last prompt, a text in the middle that to the first.
    for settings in ([SamplingSettings(4)] * 2 + [SamplingSettings(99)], [SamplingSettings(4, stop=(third,))] * 3):
        finished: list[int] = []
        found = engine.generate(ids, settings, lambda request, to=finished: to.append(request.number))
        wanted = own.generate(ids, settings)
        assert [vars(r) | {"number": 0} for r in found] == [vars(r) | {"number": 0} for r in wanted]
        assert finished == [0, 1, 2]
    assert engine.dtype == "vllm 0.0"


def test_log_likelihoods_are_ours(tiny_model: GPT, tokenizer: GPT2Tokenizer, vllm: Any, tmp_path: Path) -> None:
    engine, n = VLLMEngine(tiny_model, tokenizer, tmp_path), tiny_model.config.context_length
    pairs = [(tokenizer.encode(text), tokenizer.encode(end)) for text in PROMPTS for end in (" sea", " and so on")]
    greedy = Engine(tiny_model, tokenizer).generate([pairs[0][0]], SamplingSettings(2))[0].ids
    pairs.append((pairs[0][0], greedy))
    own = EvaluatedModel(tiny_model, tokenizer, None, vllm=engine)  # type: ignore[arg-type]
    found, wanted = own.score([str(pair) for pair in pairs], pairs), log_likelihoods(tiny_model, pairs)
    assert [score.is_greedy for score in found] == [score.is_greedy for score in wanted] and found[-1].is_greedy
    assert [score.log_likelihood for score in found] == pytest.approx([s.log_likelihood for s in wanted], rel=1e-5)
    ((value, _),) = engine.log_likelihoods([(tokenizer.encode("word") * (2 * n), tokenizer.encode(" sea"))])
    assert value < 0
    wanted_texts = [
        r.text for r in Engine(tiny_model, tokenizer).generate([p for p, _ in pairs[:1]], SamplingSettings(3))
    ]
    for _ in range(2):  # a second time from the cache
        assert own.write(PROMPTS[:1], [SamplingSettings(3)]) == wanted_texts


def test_where_it_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    for command, overrides, message in (
        ("evaluate", ["run=."], r"engine=vllm: needs vllm; pip install -e '.\[vllm\]'"),
        ("evaluate", ["responses=x.json"], "engine=vllm: it computes with a run folder"),
        ("benchmark", ["run=.", "suite=helm"], "engine=vllm: suite=helm asks through an API; give engine=own"),
    ):
        with pytest.raises(ConfigError, match=message):
            check_command(command, composed(command, "engine=vllm", *overrides))
