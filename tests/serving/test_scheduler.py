"""Many threads and one engine: answers of their own, bounds, cancellation, and a failure that is survived."""

import queue
import threading
import time
from collections.abc import Iterator

import pytest

from instruct_lit.generation.engine import Engine
from instruct_lit.generation.sampling import SamplingSettings
from instruct_lit.serving.conversation import Speaker
from instruct_lit.serving.scheduler import QueueFullError, Scheduler
from tests.serving.conftest import greedy

SETTINGS = SamplingSettings(max_new_tokens=12)


@pytest.fixture
def scheduler(speaker: Speaker) -> Iterator[Scheduler]:
    scheduler = Scheduler(Engine(speaker.model, speaker.tokenizer, max_rows=4), max_waiting=12)
    yield scheduler
    scheduler.close()
    assert not scheduler.is_alive


def test_answers_of_many_threads_are_those_of_one(scheduler: Scheduler, speaker: Speaker) -> None:
    prompts = [speaker.tokenizer.encode(f"Question {n}: what" + " now" * (n % 5)) for n in range(16)]
    found: dict[int, str] = {}

    def ask(n: int) -> None:
        *_, last = scheduler.stream(prompts[n], SETTINGS)
        found[n] = last.text

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[n] for n in range(16)] == [greedy(speaker, prompt, 12) for prompt in prompts]
    assert len(set(found.values())) > 8 and scheduler.n_open == 0


def test_more_than_may_wait_are_refused_all_or_none(scheduler: Scheduler) -> None:
    ended: queue.SimpleQueue = queue.SimpleQueue()
    long = SamplingSettings(max_new_tokens=100)
    tickets = scheduler.submit([(scheduler.engine.prepare([1, 2], long), ended.put) for _ in range(15)], False)
    with pytest.raises(QueueFullError, match="has 15 of at most 16 requests; try again later"):
        scheduler.submit([(scheduler.engine.prepare([1, 2], long), ended.put) for _ in range(2)], False)
    scheduler.cancel(tickets)
    assert [ended.get(timeout=10).finish_reason for _ in range(15)] == ["cancelled"] * 15
    assert scheduler.n_open == 0


def test_leaving_a_stream_cancels_it(scheduler: Scheduler) -> None:
    stream = scheduler.stream([1, 2], SamplingSettings(max_new_tokens=100))
    next(stream)
    stream.close()
    end = time.monotonic() + 10
    while scheduler.n_open and time.monotonic() < end:
        time.sleep(0.01)
    assert scheduler.n_open == scheduler.engine.n_unfinished == 0


def test_a_failing_step_cancels_its_requests_and_the_next_are_answered(
    scheduler: Scheduler, speaker: Speaker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(scheduler.engine.model, "hidden_states", broken)
        assert [u.finish_reason for u in scheduler.stream([1, 2], SETTINGS)] == ["cancelled"]
    assert "a step of generation failed" in caplog.text
    *_, last = scheduler.stream([1, 2], SETTINGS)
    assert last.text == greedy(speaker, [1, 2], 12)


def test_closing_cancels_and_refuses(speaker: Speaker, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(speaker.model, speaker.tokenizer)
    step = engine.step

    def slowly() -> list:  # a tiny model would have written everything before it is closed
        time.sleep(0.02)
        return step()

    monkeypatch.setattr(engine, "step", slowly)
    scheduler = Scheduler(engine)
    stream = scheduler.stream([1, 2], SamplingSettings(max_new_tokens=100))
    next(stream)
    scheduler.close()
    assert list(stream)[-1].finish_reason == "cancelled"
    with pytest.raises(QueueFullError, match="is shutting down"):
        next(scheduler.stream([1, 2], SETTINGS))


def test_a_client_that_cannot_be_told_is_cancelled(scheduler: Scheduler) -> None:
    def gone(update: object) -> None:
        raise RuntimeError("event loop is closed")

    (ticket,) = scheduler.submit(
        [(scheduler.engine.prepare([1, 2], SamplingSettings(max_new_tokens=100)), gone)], every_step=True
    )
    end = time.monotonic() + 10
    while scheduler.n_open and time.monotonic() < end:
        time.sleep(0.01)
    assert ticket.request.finish_reason == "cancelled" and len(ticket.request.ids) < 5
