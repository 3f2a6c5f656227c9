"""What tests of every room share."""

import contextlib
import gc
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from instruct_lit.core.data.tokenizer import GPT2Tokenizer
    from instruct_lit.core.model.gpt import GPT

ROOT = Path(__file__).resolve().parents[1]
gc.disable()  # until the tests are collected: importing makes hardly any garbage


def pytest_sessionstart(session: pytest.Session) -> None:
    """Import what takes seconds, but not in the controller of pytest-xdist, which runs no test and is waited for."""
    if session.config.pluginmanager.has_plugin("dsession"):
        return
    import hypothesis

    from instruct_lit.config.model_builders import install_satellites

    hypothesis.settings.register_profile("quiet", deadline=None)  # a busy machine is no failure
    hypothesis.settings.load_profile("quiet")
    install_satellites()
    for name in ("tests.commands", "tests.fixtures.training", "tests.fixtures.hub", "tests.fixtures.compositions"):
        session.config.pluginmanager.import_plugin(name)


def pytest_collection_finish() -> None:
    """What the libraries made while they were imported stays; no collection need go through it again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
    gc.enable()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests that are marked `gpu` skip where there is none."""
    import torch

    if item.get_closest_marker("gpu") is not None and not torch.cuda.is_available():
        pytest.skip("no CUDA device")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real records and benchmark items that lie beside the repository; tests that need them skip without."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("../shared/data is not here")
    return folder


@pytest.fixture(scope="session")
def tokenizer() -> "GPT2Tokenizer":
    """GPT-2's tokenizer."""
    from instruct_lit.core.data.tokenizer import GPT2Tokenizer

    return GPT2Tokenizer()


@pytest.fixture
def tiny_model() -> "GPT":
    """A GPT with random weights and GPT-2's vocabulary, small enough for any test."""
    from instruct_lit.core.model.gpt import GPT, GPTConfig

    model = GPT(GPTConfig(context_length=64, d_model=32, n_layers=2, n_heads=4))
    model.init_weights(seed=0)
    return model.eval()


CHAT = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


@pytest.fixture(scope="session")
def llama_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with grouped heads, its byte-level tokenizer and a chat template, as a Hugging Face directory."""
    transformers = pytest.importorskip("transformers")
    import tokenizers
    import torch

    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    specials = ["<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, special_tokens=specials, show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    bpe.train_from_iterator(["the cat and the dog", "Write a word. Answer:"], trainer)
    bpe.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = CHAT
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=160, tie_word_embeddings=True, initializer_range=0.3,
        bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("llama")
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


class JudgeServer:
    """A judge's endpoint on this machine that does what `behave` says, and remembers what it was asked.

    `behave(n, body)` gets the number of the request (from 0) and its JSON body and returns the text of a verdict, a
    triple of status, headers and raw body, or seconds to hang. `listing` is such a triple for the list of models.
    """

    def __init__(self, behave: Callable[[int, dict], Any]) -> None:
        self.behave, self.requests, self.keys = behave, list[dict](), set[str | None]()
        models = {"data": [{"id": "small"}], "models": [{"name": "small:latest"}]}
        self.listing: tuple[int, dict[str, str], bytes] = (200, {}, json.dumps(models).encode())
        self.running = self.most_running = 0
        self._lock = threading.Lock()
        judge = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send(judge.listing)

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with judge._lock:
                    number = len(judge.requests)
                    judge.requests.append(body)
                    judge.keys.add(self.headers.get("authorization"))
                    judge.running += 1
                    judge.most_running = max(judge.most_running, judge.running)
                answer = judge.behave(number, body)
                if isinstance(answer, float):
                    time.sleep(answer)
                    answer = "too late"
                with judge._lock:
                    judge.running -= 1
                self.send(answer if isinstance(answer, tuple) else (200, {}, judge.reply(self.path, answer)))

            def send(self, answer: tuple[int, dict[str, str], bytes]) -> None:
                status, headers, raw = answer
                self.send_response(status)
                for name, value in {
                    "content-type": "application/json",
                    "content-length": str(len(raw)),
                    **headers,
                }.items():
                    self.send_header(name, value)
                self.end_headers()
                with contextlib.suppress(OSError):  # the client is gone
                    self.wfile.write(raw)

            def log_message(self, *_: object) -> None:
                pass

        answering = self._answering = set()

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128  # beyond it a connection is tried again after a second

            def process_request_thread(self, request: Any, client_address: Any) -> None:
                answering.add(threading.current_thread())
                try:
                    super().process_request_thread(request, client_address)
                finally:
                    answering.discard(threading.current_thread())

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def reply(self, path: str, text: str) -> bytes:
        if path == "/api/chat":
            return json.dumps({"message": {"content": text}, "prompt_eval_count": 10, "eval_count": 3}).encode()
        usage = {"prompt_tokens": 10, "completion_tokens": 3}
        return json.dumps({"choices": [{"message": {"content": text}}], "usage": usage}).encode()

    def close(self) -> None:
        self._server.shutdown()
        deadline = time.monotonic() + 0.3
        for thread in list(self._answering):  # those that hang by intention are left
            thread.join(max(0.0, deadline - time.monotonic()))
        self._server.server_close()


@pytest.fixture
def judge_server(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[Callable[[int, dict], Any]], JudgeServer]]:
    """Starts judges' endpoints that behave as told, whose clients load no authorities' certificates at each start."""
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path_factory.mktemp("certificates")))
    servers: list[JudgeServer] = []

    def start(behave: Callable[[int, dict], Any]) -> JudgeServer:
        servers.append(JudgeServer(behave))
        return servers[-1]

    yield start
    for server in servers:
        server.close()
