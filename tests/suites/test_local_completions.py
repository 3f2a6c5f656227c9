"""lm-evaluation-harness's own client of `/v1/completions` against our server: it ranks choices as `hf` does on the bundle.

The client takes the log-probabilities from the context on without the last, which is that of the one generated token.
Where that token is end-of-text, it must be among them, or the last token of the choice is dropped.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from instruct_lit.core.bundle import save_bundle
from instruct_lit.core.data.tokenizer import GPT2Tokenizer
from instruct_lit.core.generation.engine import Engine
from instruct_lit.core.generation.sampling import SamplingSettings
from instruct_lit.core.model.gpt import GPT, GPTConfig
from instruct_lit.evaluation.answer_cache import AnswerCache
from instruct_lit.serving.chat_model import ChatModel
from instruct_lit.serving.completions import CompletionService
from instruct_lit.serving.http import make_app
from instruct_lit.suites.endpoint import NAME, Endpoint
from instruct_lit.suites.evaluated_model import EvaluatedModel
from tests.serving.conftest import run_in_thread
from tests.suites.conftest import GREEDY, TEMPLATE

for module in ("fastapi", "uvicorn", "prometheus_client", "lm_eval", "transformers"):
    pytest.importorskip(module)
ITEMS = [
    ("Question: Which of these is a colour?\nAnswer:", [" red", " seven o'clock", " Tuesday morning"]),
    ("Question: What do bees make?\nAnswer:", [" honey", " bread and butter", " glass windows"]),
    ("Question: How many legs has a spider?\nAnswer:", [" eight", " four and a half", " none"]),
]


@pytest.fixture(scope="module")
def ending_model(tokenizer: GPT2Tokenizer) -> GPT:
    """A model that ends the text after the first choice of every item."""
    model = GPT(GPTConfig(context_length=512, d_model=32, n_layers=2, n_heads=4))
    model.init_weights(seed=0)
    with torch.no_grad():
        model.wte.weight.mul_(8)
        texts = [tokenizer.encode(context + choices[0]) for context, choices in ITEMS]
        ends = torch.stack([model.hidden_states(torch.tensor([ids]))[0, -1] for ids in texts])
        # The least vector whose logit is 40 behind each of these texts.
        model.wte.weight[tokenizer.eot_id] = torch.linalg.pinv(ends) @ torch.full((len(texts),), 40.0)
    return model.eval()


@pytest.fixture(scope="module")
def folder(ending_model: GPT, tokenizer: GPT2Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ending") / "bundle"
    save_bundle(path, ending_model, tokenizer, TEMPLATE, GREEDY, {})
    return path


@pytest.fixture(scope="module")
def url(ending_model: GPT, tokenizer: GPT2Tokenizer) -> Iterator[str]:
    engine = Engine(ending_model, tokenizer, 4)
    service = CompletionService(ChatModel(NAME, ending_model, tokenizer, TEMPLATE), engine, SamplingSettings())
    url, stop = run_in_thread(make_app(service))
    yield f"{url}/v1"
    stop()


def scores(model: Any) -> list[list[tuple[float, bool]]]:
    """Log-likelihood and greediness of every choice of every item."""
    from lm_eval.api.instance import Instance

    requests = [
        Instance("loglikelihood", {}, (context, choice), number)
        for number, (context, choices) in enumerate(ITEMS)
        for choice in choices
    ]
    found = model.loglikelihood(requests)
    return [[tuple(one) for one in found[i : i + 3]] for i in range(0, len(found), 3)]


def hf(folder: Path) -> list[list[tuple[float, bool]]]:
    from lm_eval.models.huggingface import HFLM

    return scores(HFLM(pretrained=str(folder), device="cpu", batch_size=1))


def client(url: str, folder: Path) -> Any:
    pytest.importorskip("tenacity")  # of lm_eval[api]
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    return LocalCompletionsAPI(
        base_url=f"{url}/completions",
        model=NAME,
        tokenizer=str(folder),
        tokenizer_backend="huggingface",
        max_length=512,
    )


def same(ours: list[list[tuple[float, bool]]], theirs: list[list[tuple[float, bool]]]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert [value for value, _ in one] == pytest.approx([value for value, _ in other], abs=1e-3)
        assert [greedy for _, greedy in one] == [greedy for _, greedy in other]


def test_the_clients_ranking_is_that_of_hf_on_the_bundle(url: str, folder: Path) -> None:
    same(scores(client(url, folder)), hf(folder))


def test_a_benchmarks_endpoint_ranks_alike_also_a_second_time(
    ending_model: GPT, tokenizer: GPT2Tokenizer, folder: Path, tmp_path: Path
) -> None:
    evaluated = EvaluatedModel(ending_model, tokenizer, TEMPLATE, AnswerCache(tmp_path / "kept.jsonl"))
    with Endpoint(evaluated) as endpoint:
        for _ in range(2):
            same(scores(client(endpoint.url, folder)), hf(folder))


def post(url: str, **body: Any) -> Any:
    import json
    import urllib.request

    data = json.dumps({"model": NAME, **body}).encode()
    call = urllib.request.Request(f"{url}/completions", data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(call, timeout=30) as answer:
        return json.loads(answer.read())


def test_end_of_text_is_in_logprobs_and_usage(url: str, tokenizer: GPT2Tokenizer, folder: Path) -> None:
    """The harness's reading of a response, with the log-likelihoods that it computes of the bundle itself."""
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    expected = hf(folder)
    for (context, choices), values in zip(ITEMS, expected, strict=True):
        n_context = len(tokenizer.encode(context))
        for choice, value in zip(choices, values, strict=True):
            ids = tokenizer.encode(context + choice)
            answer = post(url, prompt=[ids], max_tokens=1, temperature=0, echo=True, logprobs=1, seed=1234)
            (parsed,) = LocalCompletionsAPI.parse_logprobs(answer, [ids], [n_context])
            assert parsed == (pytest.approx(value[0], abs=1e-3), value[1])
            found = answer["choices"][0]
            assert len(found["logprobs"]["tokens"]) == len(ids) + 1 and answer["usage"]["completion_tokens"] == 1
            if choice == choices[0]:
                assert (found["finish_reason"], found["text"]) == ("stop", context + choice)
                assert found["logprobs"]["tokens"][-1] == "<|endoftext|>"
                assert found["logprobs"]["text_offset"][-1] == len(context + choice)
                assert answer["usage"]["total_tokens"] == len(ids) + 1
