"""A judge with a local server that replies properly, slowly, or not at all."""

import gc
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from instruct_lit.errors import JudgeError
from instruct_lit.evaluation.answer_cache import AnswerCache
from instruct_lit.evaluation.comparison import Outcome, win_rate
from instruct_lit.evaluation.judging.endpoints import OllamaEndpoint, OpenAIEndpoint
from instruct_lit.evaluation.judging.judge import ASSUMED_SECONDS, Judge, Judgement, require_judged, summary
from instruct_lit.evaluation.judging.prompt import JudgePrompt, Score

pytest.importorskip("openai")
anyio = pytest.importorskip("anyio")
PROMPT = JudgePrompt("plain", "{{ response }} {{ request }}", Score(), ("response",))
QUESTIONS = [f"question {number}" for number in range(12)]
KEY = "sk-secret-key"
QUICK = {"retry-after-ms": "1"}  # how a server asks for a short pause
PAGE = (200, {"content-type": "text/html"}, b"<html>Welcome</html>")


@pytest.fixture
def make_judge(tmp_path: Path) -> Callable[..., Judge]:
    def make(url: str, kind: Any = OpenAIEndpoint, **settings: Any) -> Judge:
        of_judge = {name: settings.pop(name) for name in ("n_concurrent", "n_asks", "prices") if name in settings}
        endpoint = kind(url, "small", KEY, **{"n_retries": 2, "timeout_s": 5.0, **settings})
        return Judge(endpoint, AnswerCache(tmp_path / "replies.jsonl"), **of_judge)

    return make


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client of openai waits through anyio before it repeats a request, and ours before it asks again."""
    sleep = anyio.sleep
    monkeypatch.setattr(anyio, "sleep", lambda seconds: sleep(min(seconds, 0.01)))
    monkeypatch.setattr("instruct_lit.evaluation.judging.endpoints.PAUSE_S", 0.01)


def test_scores_come_in_the_order_of_the_questions(judge_server: Callable, make_judge: Callable) -> None:
    server = judge_server(lambda n, body: json.dumps({"score": int(body["messages"][0]["content"].split()[1])}))
    found = make_judge(server.url).ask(PROMPT.verdict, QUESTIONS)
    assert [judgement.value for judgement in found] == list(range(12))
    request = server.requests[0]
    assert request["temperature"] == 0 and request["model"] == "small" and server.keys == {f"Bearer {KEY}"}
    assert request["response_format"]["json_schema"]["schema"] == Score().schema


def test_ollama_is_held_to_the_schema_by_its_own_api(judge_server: Callable, make_judge: Callable) -> None:
    server = judge_server(lambda n, body: '{"score": 5}')
    judge = make_judge(server.url, OllamaEndpoint, n_ctx=2048)
    judge.check()
    assert judge.ask(PROMPT.verdict, ["question 1"])[0].value == 5
    (request,) = server.requests
    assert request["format"] == Score().schema and request["stream"] is False
    assert request["options"] == {"temperature": 0, "num_predict": 256, "seed": 0, "num_ctx": 2048}
    assert judge.usage() == {"n_requests": 1, "n_prompt_tokens": 10, "n_reply_tokens": 3}


def test_a_second_run_costs_nothing_and_other_settings_are_asked_again(
    judge_server: Callable, make_judge: Callable
) -> None:
    server = judge_server(lambda n, body: "50")
    first = make_judge(server.url).ask(PROMPT.verdict, [*QUESTIONS, QUESTIONS[0]])
    assert len(server.requests) == 12 and len(first) == 13  # the same question is asked once
    again = make_judge(server.url)
    assert again.ask(PROMPT.verdict, [*QUESTIONS, QUESTIONS[0]]) == first
    assert len(server.requests) == 12 and again.n_requests == 0
    make_judge(server.url, temperature=0.5).ask(PROMPT.verdict, QUESTIONS)
    assert len(server.requests) == 24


def test_at_most_so_many_requests_at_once(judge_server: Callable, make_judge: Callable) -> None:
    def slowly(n: int, body: dict) -> Any:
        import time

        time.sleep(0.05)
        return "50"

    server = judge_server(slowly)
    make_judge(server.url, n_concurrent=3).ask(PROMPT.verdict, QUESTIONS)
    assert server.most_running == 3


def test_unreadable_replies_are_asked_again_and_then_counted(judge_server: Callable, make_judge: Callable) -> None:
    def stubborn(n: int, body: dict) -> str:
        number = int(body["messages"][0]["content"].split()[1])
        return "It is good." if number < 3 or (number == 3 and len(body["messages"]) == 1) else "80"

    server = judge_server(stubborn)
    found = make_judge(server.url, n_asks=2).ask(PROMPT.verdict, QUESTIONS)
    assert [judgement.value for judgement in found] == [None] * 3 + [80] * 9
    assert [judgement.n_asked for judgement in found] == [2] * 4 + [1] * 8 and found[0].reply == "It is good."
    repeated = next(body for body in server.requests if len(body["messages"]) == 3)
    assert repeated["messages"][1] == {"role": "assistant", "content": "It is good."}
    assert "cannot be read" in repeated["messages"][2]["content"]
    numbers = summary(found, 0, 100)
    assert numbers["score"]["n"] == 12 and numbers["score"]["mean"] == pytest.approx(60)  # 9 · 80 / 12, not 80
    assert numbers["n_unparsed"] == 3 and numbers["mean_at_best"] == pytest.approx(85) and numbers["n_asked_again"] == 4


def test_the_unparsed_count_as_the_lowest_score_of_the_scale() -> None:
    numbers = summary([Judgement(None, "?", 3), Judgement(5, "5", 1)], 1, 5)
    assert numbers["score"]["mean"] == 3 and numbers["mean_at_best"] == 5
    require_judged(numbers)


def test_a_judge_that_is_mostly_unreadable_has_not_judged() -> None:
    numbers = summary([Judgement(None, "?", 3)] * 2 + [Judgement(5, "5", 1)], 1, 5)
    assert numbers["score"] is None and (numbers["n_unparsed"], numbers["n_verdicts"]) == (2, 3)
    with pytest.raises(
        JudgeError, match="not judged: 2 of 3 verdicts could not be parsed; everything is saved"
    ) as caught:
        require_judged(numbers)
    assert str(caught.value).endswith("give another judge.model or a larger judge.max_unparsed")
    judgements = [Judgement(None, "?", 3)] * 2 + [Judgement(5, "5", 1)]
    assert summary(judgements, 1, 5, max_unparsed=0.7)["score"]["mean"] == pytest.approx(7 / 3)
    assert summary(judgements[1:], 1, 5, max_unparsed=0.2)["score"] is None
    outcomes = [Outcome(None, "a"), Outcome("a", "a")]
    assert [win_rate(outcomes, [(1, 1)] * 2, max_unparsed=share)["win_rate"] is None for share in (0.2, 0.25)] == [
        True,
        False,
    ]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_endpoint_is_asked_again_after_a_pause(
    status: int, judge_server: Callable, make_judge: Callable
) -> None:
    server = judge_server(lambda n, body: (status, QUICK, b'{"error": {"message": "busy"}}') if n < 2 else "50")
    assert make_judge(server.url).ask(PROMPT.verdict, ["question 1"])[0].value == 50 and len(server.requests) == 3


@pytest.mark.usefixtures("short_pauses")
def test_truncated_json_is_requested_again(judge_server: Callable, make_judge: Callable) -> None:
    server = judge_server(lambda n, body: (200, {}, b'{"choices": [{"mess') if n == 0 else "50")
    assert make_judge(server.url).ask(PROMPT.verdict, ["question 1"])[0].value == 50


@pytest.mark.usefixtures("short_pauses")
def test_an_error_with_status_200_is_requested_again(judge_server: Callable, make_judge: Callable) -> None:
    server = judge_server(lambda n, body: (200, {}, b'{"error": {"message": "upstream"}}') if n == 0 else "50")
    assert make_judge(server.url).ask(PROMPT.verdict, ["question 1"])[0].value == 50


def test_a_content_in_parts_is_read_without_thoughts(judge_server: Callable, make_judge: Callable) -> None:
    parts = [{"type": "thinking", "thinking": [{"type": "text", "text": "7?"}]}, {"type": "text", "text": "50"}]
    answer = json.dumps({"choices": [{"message": {"content": parts}}]}).encode()
    server = judge_server(lambda n, body: (200, {}, answer))
    assert make_judge(server.url).ask(PROMPT.verdict, ["question 1"])[0].value == 50


def test_an_endpoint_without_schemas_is_asked_without(judge_server: Callable, make_judge: Callable) -> None:
    def old(n: int, body: dict) -> Any:
        return (400, {}, b'{"error": "response_format is unknown"}') if "response_format" in body else "50"

    server = judge_server(old)
    judge = make_judge(server.url, n_concurrent=1)
    assert [judgement.value for judgement in judge.ask(PROMPT.verdict, QUESTIONS)] == [50] * 12
    assert len(server.requests) == 13  # learnt once


def test_a_refused_question_stays_in_the_denominator(judge_server: Callable, make_judge: Callable) -> None:
    def short(n: int, body: dict) -> Any:
        too_long = body["messages"][0]["content"] == "question 7"
        return (400, {}, b'{"error": {"message": "context length exceeded"}}') if too_long else "50"

    found = make_judge(judge_server(short).url).ask(PROMPT.verdict, QUESTIONS)
    assert found[7].value is None and found[7].refused == "status 400: context length exceeded"
    numbers = summary(found, 0, 100)
    assert (numbers["n_refused"], numbers["n_unparsed"], numbers["score"]["n"]) == (1, 1, 12)


BAD = {
    "html": (lambda n, body: PAGE, "the answer is not JSON (a web page?)"),
    "key": (lambda n, body: (401, {}, b'{"error": {"message": "bad key sk-secret-key"}}'), "the key is refused (status 401: bad key ***)"),
    "model": (lambda n, body: (404, {}, b'{"error": {"message": "no such model"}}'), "no model 'small' or no such path"),
    "busy": (lambda n, body: (429, QUICK, b'{"error": {"message": "slow down"}}'), "too many requests or no credit, tried 3 times (status 429: slow down)"),
    "down": (lambda n, body: (500, QUICK, b"oops"), "status 500: oops, tried 3 times"),
    "method": (lambda n, body: (405, {}, b'{"error": "use PUT"}'), "status 405: use PUT, tried once"),
    "hang": (lambda n, body: 3.0, "no answer in time, tried 3 times; raise judge.timeout_s"),
    "garbage": (lambda n, body: (200, {}, b"{{{{"), "invalid JSON in the answer"),
    "form": (lambda n, body: (200, {}, b'{"text": "50"}'), "unexpected form of the answer: {'text': '50'}"),
    "list": (lambda n, body: (200, {}, b"[]"), "unexpected form of the answer: []"),
    "parts": (lambda n, body: (200, {}, b'{"choices": [{"message": {"content": [50]}}]}'), "unexpected form of the answer: {'choices'"),
    "declines": (lambda n, body: (400, {}, b'{"error": "not today"}'), "the judge refuses every question: status 400: not today; judge.body= changes the fields"),
    "upstream": (lambda n, body: (200, {}, b'{"error": {"message": "upstream"}}'), "unexpected form of the answer: {'error'"),
}  # fmt: skip


@pytest.mark.usefixtures("short_pauses")
@pytest.mark.parametrize("kind", BAD)
def test_each_kind_of_failure_has_its_message(
    kind: str, judge_server: Callable, make_judge: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("instruct_lit.evaluation.judging.endpoints.PAUSE_S", 0.01)
    behave, message = BAD[kind]
    server = judge_server(behave)
    with pytest.raises(JudgeError) as raised:
        make_judge(server.url, timeout_s=0.2).ask(PROMPT.verdict, ["question 1"])
    assert message in str(raised.value) and KEY not in str(raised.value)
    if kind != "declines":
        assert str(raised.value).startswith(f"judge.url={server.url}: ")


@pytest.mark.usefixtures("short_pauses")
def test_an_unreachable_endpoint(make_judge: Callable) -> None:
    for ask, n_retries, tried in (
        (lambda judge: judge.check(), 0, "once"),
        (lambda judge: judge.check(), 2, "2 times"),
        (lambda judge: judge.ask(PROMPT.verdict, ["question 1"]), 0, "once"),
        (lambda judge: judge.ask(PROMPT.verdict, ["question 1"]), 2, "3 times"),
    ):
        message = f"judge.url=http://127.0.0.1:9: cannot be reached, tried {tried} .*is the server running"
        with pytest.raises(JudgeError, match=message):
            ask(make_judge("http://127.0.0.1:9", n_retries=n_retries))


@pytest.mark.usefixtures("short_pauses")
def test_checks_before_the_first_question(judge_server: Callable, make_judge: Callable) -> None:
    good = judge_server(lambda n, body: "50")
    make_judge(good.url).check()
    other = make_judge(good.url, OllamaEndpoint)
    other.endpoint.model = "large"
    with pytest.raises(JudgeError, match="judge.model=large: .* has no such model; it has small.*ollama pull large"):
        other.check()
    for listing, message in (
        (PAGE, "a web page"),
        ((401, {}, b"{}"), "the key is refused"),
        ((200, {}, b"{{"), "invalid JSON"),
    ):
        good.listing = listing
        with pytest.raises(JudgeError, match=message):
            make_judge(good.url).check()
    good.listing = (404, {}, b"{}")  # an endpoint without a list of models
    make_judge(good.url).check()
    assert good.requests == []


def test_an_interrupted_run_resumes(judge_server: Callable, make_judge: Callable) -> None:
    server = judge_server(lambda n, body: "50" if n < 5 else (401, {}, b'{"error": "expired"}'))
    with pytest.raises(JudgeError, match="; 5 of 12 replies are cached, run the same command to resume"):
        make_judge(server.url, n_concurrent=1).ask(PROMPT.verdict, QUESTIONS)
    server.behave = lambda n, body: "60"
    judge = make_judge(server.url, n_concurrent=1)
    assert [judgement.value for judgement in judge.ask(PROMPT.verdict, QUESTIONS)] == [50] * 5 + [60] * 7
    assert judge.n_requests == 7


def test_a_request_to_end_within_a_question_is_no_traceback(
    judge_server: Callable, make_judge: Callable, caplog: pytest.LogCaptureFixture
) -> None:
    """The handler of SIGTERM raises SystemExit wherever the program is; the loop would log it as well."""
    judge = make_judge(judge_server(lambda n, body: '{"score": 5}').url, n_concurrent=3)

    def end(answers: Any) -> None:
        raise SystemExit(143)

    judge.cache.add = end  # type: ignore[method-assign]
    with pytest.raises(SystemExit, match="143"):
        judge.ask(PROMPT.verdict, QUESTIONS)
    gc.collect()  # the loop logs when it drops a task
    assert caplog.records == []


def test_the_estimate_uses_cache_prices_and_durations(judge_server: Callable, make_judge: Callable) -> None:
    server = judge_server(lambda n, body: "50")
    settings = {"prices": (1000.0, 2000.0), "n_concurrent": 4, "max_tokens": 100}
    make_judge(server.url, **settings).ask(PROMPT.verdict, QUESTIONS[:2])
    judge = make_judge(server.url, **settings)
    estimate = judge.estimate(Score(), QUESTIONS, lambda text: 50)
    assert (estimate.n_questions, estimate.n_left, estimate.n_prompt_tokens) == (12, 10, 500)
    assert estimate.dollars == pytest.approx(10 * 50 * 1e-3 + 10 * 100 * 2e-3)
    durations = [value["seconds"] for value in judge.cache.values()]
    assert len(durations) == 2 and estimate.seconds == pytest.approx(10 * sum(durations) / 2 / 4)
    judge.endpoint.model = "large"
    assert judge.estimate(Score(), QUESTIONS, len).seconds == 10 * ASSUMED_SECONDS / 4
    judge.endpoint.model = "small"
    assert "12 questions, 2 of them answered in the cache; 10 to ask: about 500 tokens, " in str(estimate)
    assert " s, 2.50 US dollars; at most 30 requests, " in str(estimate)
    assert str(judge.estimate(Score(), QUESTIONS[:2], len)) == "2 questions, all answered in the cache"
    judge.ask(PROMPT.verdict, QUESTIONS)
    assert judge.usage() == {"n_requests": 10, "n_prompt_tokens": 100, "n_reply_tokens": 30, "usd": pytest.approx(0.16)}


def test_the_upper_bound_of_the_cost_holds_for_a_judge_that_cannot_be_read(
    judge_server: Callable, make_judge: Callable
) -> None:
    """Three requests of each question with the longest replies, every byte a token."""
    sent: list[int] = []

    def useless(n: int, body: dict) -> tuple[int, dict, bytes]:
        sent.append(
            sum(len(message["content"].encode()) for message in body["messages"])
            + len(str(body["response_format"]))
            - 80
        )
        answer = {
            "choices": [{"message": {"content": "x" * 40}}],
            "usage": {"prompt_tokens": sent[-1], "completion_tokens": 40},
        }
        return 200, {}, json.dumps(answer).encode()

    judge = make_judge(judge_server(useless).url, max_tokens=40, n_concurrent=1, prices=(1e6, 1e6))
    estimate = judge.estimate(Score(), QUESTIONS[:2], len)
    n_first, n_again = (
        10 + 16 + len(json.dumps(Score().schema)),
        16 + 40 + 16 + len("This reply cannot be read. " + Score().request),
    )
    assert (estimate.max_requests, estimate.max_reply_tokens) == (6, 240)
    assert estimate.max_prompt_tokens == 2 * (3 * n_first + 3 * n_again)
    assert estimate.max_dollars == estimate.max_prompt_tokens + 240
    assert estimate.dollars == 2 * 10 + 2 * 40  # one request of each question
    assert [judgement.value for judgement in judge.ask(PROMPT.verdict, QUESTIONS[:2])] == [None, None]
    assert len(sent) == 6 and judge.usage()["usd"] <= estimate.max_dollars
    again = judge.estimate(Score(), QUESTIONS[:3], len)  # unreadable replies are in the cache too
    assert (again.n_left, again.max_requests) == (1, 3)


def test_replies_without_a_limit_have_no_bound(judge_server: Callable, make_judge: Callable) -> None:
    url = judge_server(lambda n, body: "50").url
    estimate = make_judge(url, body={"max_tokens": None}, prices=(1.0, 1.0)).estimate(Score(), QUESTIONS, len)
    assert estimate.max_dollars is None and str(estimate).endswith("; at most 36 requests; no bound of the cost")
    limited = make_judge(url, body={"max_tokens": None, "max_completion_tokens": 9}).estimate(Score(), QUESTIONS, len)
    assert limited.max_reply_tokens == 36 * 9 and limited.dollars is None and "dollars" not in str(limited)


def test_a_reply_that_cannot_be_cached_is_one_message(
    judge_server: Callable, make_judge: Callable, tmp_path: Path
) -> None:
    judge = make_judge(judge_server(lambda n, body: "50").url)
    (tmp_path / "replies.jsonl").mkdir()
    with pytest.raises(JudgeError, match=r"replies.jsonl: the cache cannot be used \(Is a directory\)"):
        judge.ask(PROMPT.verdict, ["question 1"])


def test_an_endpoint_that_does_not_count_tokens(judge_server: Callable, make_judge: Callable) -> None:
    answer = {"choices": [{"message": {"content": "50"}}], "usage": {"prompt_tokens": None}}
    judge = make_judge(judge_server(lambda n, body: (200, {}, json.dumps(answer).encode())).url)
    assert judge.ask(PROMPT.verdict, ["question 1"])[0].value == 50 and judge.usage()["n_prompt_tokens"] == 0


def test_more_fields_and_fewer_in_a_request(judge_server: Callable, make_judge: Callable) -> None:
    server = judge_server(lambda n, body: "50")
    make_judge(server.url, body={"max_tokens": None, "max_completion_tokens": 9}).ask(PROMPT.verdict, ["question 1"])
    assert server.requests[0]["max_completion_tokens"] == 9 and "max_tokens" not in server.requests[0]


def test_without_the_extra(make_judge: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    from instruct_lit.errors import ConfigError

    monkeypatch.setitem(__import__("sys").modules, "openai", None)
    with pytest.raises(ConfigError, match=r"pip install -e '.\[judge\]'"):
        make_judge("http://127.0.0.1:9")
