"""Models behind an OpenAI-compatible API in `evaluate` and `benchmark`: our own server, and a recorded fake."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from instruct_lit.config.check_commands import check_command
from instruct_lit.core.data.template import Template
from instruct_lit.core.data.tokenizer import GPT2Tokenizer
from instruct_lit.core.generation.sampling import SamplingSettings
from instruct_lit.core.model.gpt import GPT, GPTConfig
from instruct_lit.errors import ConfigError, JudgeError
from instruct_lit.evaluation.answer_cache import AnswerCache
from instruct_lit.evaluation.judging.judge import Judge
from instruct_lit.evaluation.remote_model import CompletionEndpoint, RemoteModel, messages_of
from instruct_lit.suites.endpoint import NAME, Endpoint
from instruct_lit.suites.evaluated_model import EvaluatedModel
from tests.configs import composed

for module in ("openai", "fastapi", "uvicorn", "lm_eval"):
    pytest.importorskip(module)
KEY = "sk-very-secret"
PAIRS = [("Bees make", " honey and wax"), ("Bees make", " glass"), ("A spider has ", "eight legs")]


@pytest.fixture(scope="module")
def evaluated() -> EvaluatedModel:
    model = GPT(GPTConfig(context_length=640, d_model=32, n_layers=1, n_heads=2))
    model.init_weights(0)
    return EvaluatedModel(model, GPT2Tokenizer(), Template("bare", "{{ instruction }}{{ response }}"))


@pytest.fixture(scope="module")
def url(evaluated: EvaluatedModel) -> Iterator[str]:
    with Endpoint(evaluated) as endpoint:
        yield endpoint.url


def remote(url: str, chat: bool, path: Path | None = None) -> RemoteModel:
    endpoint = CompletionEndpoint(url, NAME, constrained=False, n_retries=0)
    return RemoteModel(Judge(endpoint, AnswerCache(path), n_asks=1), chat)


def test_log_probabilities_are_those_of_the_model(url: str, evaluated: EvaluatedModel, tmp_path: Path) -> None:
    scores = remote(url, False, tmp_path / "cache.jsonl").score(PAIRS)
    ids = [(evaluated.encode(a.rstrip()), evaluated.encode(a[len(a.rstrip()) :] + b)) for a, b in PAIRS]
    for (value, is_greedy), expected in zip(scores, evaluated.score(PAIRS, ids), strict=True):
        assert value == pytest.approx(expected.log_likelihood, abs=1e-3) and is_greedy == expected.is_greedy
    again = remote("http://127.0.0.1:9/v1", False, tmp_path / "cache.jsonl")
    with pytest.raises(JudgeError, match=r"endpoint.url=http://127.0.0.1:9/v1: cannot be reached"):
        again.score(PAIRS)  # another address is another model


def test_a_prompt_that_the_server_truncates_is_refused(url: str) -> None:
    with pytest.raises(JudgeError, match="the echoed prompt is not the one sent"):
        remote(url, False).score([("word " * 640, "end " * 200)])


def test_a_server_without_echo_is_refused_by_name(judge_server: Callable) -> None:
    server = judge_server(lambda n, body: "blue")
    with pytest.raises(JudgeError, match=r"it does not return the log-probabilities of a prompt \(echo and logprobs"):
        remote(server.url, False).score([("The sky is", " blue")])


@pytest.mark.slow
def test_a_run_and_a_hosted_model_in_one_table(
    judge_server: Callable, small_run: Path, command: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server = judge_server(lambda n, body: f"answer to {len(body['messages'])} messages")
    given = [
        f"run={small_run}",
        f"endpoint={server.url}",
        "endpoint.model=small",
        "endpoint.api_key_env=OPENAI_API_KEY",
    ]
    given += [
        "generation.max_new_tokens=4",
        "n_responses=4",
        "endpoint.body={max_tokens: null, max_completion_tokens: 7}",
    ]
    command("evaluate", *given, "hydra.run.dir=out", cwd=tmp_path)
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert list(found["models"].values()) == [str(small_run), "endpoint/small"] and found["n_examples"] == 4
    assert {(body.get("max_tokens"), body["max_completion_tokens"]) for body in server.requests} == {(None, 7)}
    n_asked = len(server.requests)
    command("evaluate", *given, "hydra.run.dir=again", cwd=tmp_path)
    assert len(server.requests) == n_asked == 4  # the rest is in the cache
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes(), path


@pytest.mark.slow
def test_a_benchmark_of_our_own_server(url: str, command: Callable, shared_data: Path, tmp_path: Path) -> None:
    common = [
        f"endpoint={url}",
        f"endpoint.model={NAME}",
        f"benchmark.data_dir={shared_data / 'hub'}",
        "benchmark.limit=2",
    ]
    tasks = ["suite=lm_eval", "suite.tasks=[mmlu_anatomy]", "benchmark.n_shot=0"]
    done = command("benchmark", *tasks, *common, "endpoint.chat=false", "hydra.run.dir=choices", cwd=tmp_path)
    written = json.loads((tmp_path / "choices" / "benchmark.json").read_text())
    assert [run["run"] for run in written["runs"]] == [f"endpoint/{NAME}"] and "template off" in done.stdout
    assert written["runs"][0]["tasks"]["mmlu_anatomy"]["n"] == 2
    refused = command("benchmark", *tasks, *common, "hydra.run.dir=refused", cwd=tmp_path, status=2)
    assert "suite.tasks=mmlu_anatomy: it compares log-probabilities, which a chat API does not give" in refused.stderr
    command("benchmark", "suite=squad", *common, "hydra.run.dir=written", cwd=tmp_path)
    written = json.loads((tmp_path / "written" / "benchmark.json").read_text())
    assert written["runs"][0]["template"] == "on" and written["runs"][0]["tasks"]["squad_v1"]["n"] == 2


def test_sampling_reaches_the_server_and_all_stops_end_a_response(judge_server: Callable, tmp_path: Path) -> None:
    server = judge_server(lambda n, body: f"one two three {body.get('seed')}")
    model, prompt = remote(server.url, True, tmp_path / "cache.jsonl"), [{"role": "user", "content": "Count."}]
    sampled = [SamplingSettings(9, 0.5, top_k=50, repetition_penalty=1.1, seed=seed) for seed in (1, 2, 1)]
    replies = [reply["text"] for reply in model.write([prompt] * 3, sampled)]
    assert replies[0] == replies[2] != replies[1] and len(server.requests) == 2
    other = [{"role": "user", "content": "Count again."}]
    assert model.write([other], sampled[:1])[0]["text"] not in replies  # prompts do not share their random numbers
    first = server.requests[0]
    assert (first["top_k"], first["repetition_penalty"], "top_p" in first) == (50, 1.1, False)
    greedy = SamplingSettings(9, stop=("v", "w!", "x", "y", " three"))
    (reply,) = model.write([prompt], [greedy])
    assert (reply["text"], reply["finish_reason"]) == ("one two", "stop")
    assert server.requests[-1]["stop"] == ["v", "w!", "x", "y"] and "seed" not in server.requests[-1]


def test_messages_of_a_record() -> None:
    row = {"system": "Be short.", "history": [["Add.", "3"]], "instruction": "Again.", "input": "1 2"}
    assert messages_of(row) == [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "Add."},
        {"role": "assistant", "content": "3"},
        {"role": "user", "content": "Again.\n\n1 2"},
    ]


@pytest.mark.parametrize(
    ("command_name", "overrides", "message"),
    [
        ("evaluate", ["endpoint.model=x"], "endpoint.url=http://h/v1: whose examples shall it answer"),
        ("evaluate", ["data=book"], "endpoint.model=null: give the name of the endpoint's model"),
        (
            "evaluate",
            ["data=book", "endpoint.model=x", "endpoint.api_key_env=sk-key"],
            "endpoint.api_key_env=***: give",
        ),
        ("evaluate", ["data=book", "endpoint.model=x", "endpoint.chat=false"], "endpoint.chat=false"),
        ("benchmark", ["suite=helm", "endpoint.model=x"], "suite=helm cannot use it"),
    ],
)
def test_impossible_endpoints(command_name: str, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        check_command(command_name, composed(command_name, "endpoint.url=http://h/v1", *overrides))
    assert message in str(refused.value)
