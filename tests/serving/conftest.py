"""A server of a tiny model in a thread of its own, and OpenAI's own client to talk to it."""

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from instruct_lit.core.data.template import Template
from instruct_lit.core.data.tokenizer import GPT2Tokenizer
from instruct_lit.core.generation.engine import Engine
from instruct_lit.core.generation.sampling import SamplingSettings
from instruct_lit.core.model.gpt import GPT, GPTConfig
from instruct_lit.serving.chat_model import ChatModel

ALPACA = Template("short", "Q: {{ instruction }}{% if input %} ({{ input }}){% endif %}\nA: {{ response }}")
CHAT = Template(
    "turns",
    "{% if system %}[{{ system }}]\n{% endif %}U: {{ instruction }}\nB: {{ response }}<end>",
    next_turn="\nU: {{ instruction }}\nB: {{ response }}<end>",
)


def tiny_chat_model(template: Template, seed: int = 0, name: str = "tiny", context_length: int = 128) -> ChatModel:
    """A model that says different things to different prompts, sharply enough not to hang on rounding."""
    model = GPT(GPTConfig(context_length=context_length, d_model=32, n_layers=2, n_heads=4))
    model.init_weights(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(6.0)
    return ChatModel(name, model.eval(), GPT2Tokenizer(), template)


@pytest.fixture(scope="session")
def chat_model() -> ChatModel:
    return tiny_chat_model(ALPACA)


def run_in_thread(app: Any) -> tuple[str, Callable[[], None]]:
    """Serve an application on a free port; return its address and a function that stops it."""
    from instruct_lit.serving.server import make_server

    started: queue.SimpleQueue[str] = queue.SimpleQueue()
    server = make_server(app, "127.0.0.1", 0, started.put)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    url = started.get(timeout=20)

    def stop() -> None:
        server.should_exit = True
        thread.join(timeout=20)
        assert not thread.is_alive()

    return url, stop


@pytest.fixture(scope="module")
def start(chat_model: ChatModel) -> Iterator[Callable[..., SimpleNamespace]]:
    """`start(template=…, api_key=…, max_waiting=…)` runs a server until the module ends; its result has all parts."""
    for module in ("fastapi", "uvicorn", "prometheus_client", "openai"):
        pytest.importorskip(module)
    from openai import OpenAI

    from instruct_lit.serving.completions import CompletionService
    from instruct_lit.serving.http import make_app
    from instruct_lit.serving.metrics import Metrics

    stops = []

    def run(
        template: Template = ALPACA, max_rows: int = 8, max_waiting: int = 64, timeout_s: float = 60, **options: Any
    ) -> SimpleNamespace:
        own = ChatModel("tiny", chat_model.model, chat_model.tokenizer, template)
        engine, settings = Engine(own.model, own.tokenizer, max_rows), SamplingSettings(max_new_tokens=24)
        service = CompletionService(own, engine, settings, max_waiting, timeout_s, Metrics(engine))
        url, stop = run_in_thread(make_app(service, **options))
        stops.append(stop)
        key = options.get("api_key") or "none"
        client = OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=60)
        return SimpleNamespace(
            url=url, client=client, chat_model=own, engine=engine, scheduler=service.scheduler, stop=stop
        )

    yield run
    with ThreadPoolExecutor(len(stops) or 1) as pool:  # each looks for its end ten times a second
        list(pool.map(lambda stop: stop(), stops))


@pytest.fixture(scope="module")
def server(start: Callable[..., SimpleNamespace]) -> SimpleNamespace:
    return start()


def greedy(chat_model: ChatModel, prompt_ids: list[int], n_tokens: int, stop: tuple[str, ...] = ()) -> str:
    """The answer of an engine that has nothing else to do."""
    settings = SamplingSettings(max_new_tokens=n_tokens, stop=stop)
    return Engine(chat_model.model, chat_model.tokenizer, 1).generate([prompt_ids], settings)[0].text
