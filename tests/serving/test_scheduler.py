"""Many threads and one engine: answers of their own, bounds, cancellation, and a failure that is survived."""

import queue
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from instruct_lit.core.generation.engine import Engine
from instruct_lit.core.generation.sampling import SamplingSettings
from instruct_lit.serving.chat_model import ChatModel
from instruct_lit.serving.scheduler import QueueFullError, Scheduler, Update
from tests.serving.conftest import greedy

SETTINGS = SamplingSettings(max_new_tokens=12)


def stream(scheduler: Scheduler, prompt_ids: list[int], settings: SamplingSettings = SETTINGS) -> Iterator[Update]:
    """The updates of one request after every step; leaving the iterator cancels it."""
    updates: queue.SimpleQueue[Update] = queue.SimpleQueue()
    request = scheduler.engine.prepare(prompt_ids, settings)
    scheduler.submit([request], updates.put, every_step=True)
    try:
        while True:
            update = updates.get(timeout=20)
            yield update
            if update.finish_reason is not None:
                return
    finally:
        scheduler.cancel([request])


@pytest.fixture
def scheduler(chat_model: ChatModel) -> Iterator[Scheduler]:
    scheduler = Scheduler(Engine(chat_model.model, chat_model.tokenizer, max_rows=4), max_waiting=12)
    yield scheduler
    scheduler.close()
    assert not scheduler.thread.is_alive()


def test_answers_of_many_threads_are_those_of_one(scheduler: Scheduler, chat_model: ChatModel) -> None:
    prompts = [chat_model.tokenizer.encode(f"Question {n}: what" + " now" * (n % 5)) for n in range(16)]
    found: dict[int, str] = {}

    def ask(n: int) -> None:
        *_, last = stream(scheduler, prompts[n])
        found[n] = last.text

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[n] for n in range(16)] == [greedy(chat_model, prompt, 12) for prompt in prompts]
    assert len(set(found.values())) > 8 and scheduler.n_open == 0


def test_more_than_may_wait_are_refused_all_or_none(scheduler: Scheduler) -> None:
    ended: queue.SimpleQueue = queue.SimpleQueue()
    long = SamplingSettings(max_new_tokens=100)
    requests = [scheduler.engine.prepare([1, 2], long) for _ in range(15)]
    scheduler.submit(requests, ended.put, False)
    with pytest.raises(QueueFullError, match="has 15 of at most 16 requests; try again later"):
        scheduler.submit([scheduler.engine.prepare([1, 2], long) for _ in range(2)], ended.put, False)
    scheduler.cancel(requests)
    assert [ended.get(timeout=10).finish_reason for _ in range(15)] == ["cancelled"] * 15
    assert scheduler.n_open == 0


def test_leaving_a_stream_cancels_it(scheduler: Scheduler) -> None:
    updates = stream(scheduler, [1, 2], SamplingSettings(max_new_tokens=100))
    next(updates)
    updates.close()
    end = time.monotonic() + 10
    while scheduler.n_open and time.monotonic() < end:
        time.sleep(0.01)
    assert scheduler.n_open == scheduler.engine.n_unfinished == 0


def test_a_failing_step_cancels_its_requests_and_the_next_are_answered(
    scheduler: Scheduler, chat_model: ChatModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(scheduler.engine.model, "hidden_states", broken)
        assert [u.finish_reason for u in stream(scheduler, [1, 2])] == ["cancelled"]
    assert "a step of generation failed" in caplog.text and scheduler.last_error == "RuntimeError: out of memory"
    *_, last = stream(scheduler, [1, 2])
    assert last.text == greedy(chat_model, [1, 2], 12)


def test_closing_cancels_and_refuses(chat_model: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(chat_model.model, chat_model.tokenizer)
    step = engine.step

    def slowly() -> list:  # a tiny model would have written everything before it is closed
        time.sleep(0.02)
        return step()

    monkeypatch.setattr(engine, "step", slowly)
    scheduler = Scheduler(engine)
    updates = stream(scheduler, [1, 2], SamplingSettings(max_new_tokens=100))
    next(updates)
    scheduler.close()
    assert list(updates)[-1].finish_reason == "cancelled"
    with pytest.raises(QueueFullError, match="is shutting down"):
        next(stream(scheduler, [1, 2]))


def test_a_request_accepted_during_close_is_notified_of_its_end(
    chat_model: ChatModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = Scheduler(Engine(chat_model.model, chat_model.tokenizer))
    closing, put = threading.Thread(target=scheduler.close), scheduler._inbox.put

    def late(call: object) -> None:
        if threading.current_thread() is threading.main_thread() and not closing.ident:
            closing.start()
            time.sleep(0.1)  # what was not under way with the lock held would now come after the thread's end
        put(call)

    inbox = SimpleNamespace(put=late, get=scheduler._inbox.get, empty=scheduler._inbox.empty)
    monkeypatch.setattr(scheduler, "_inbox", inbox)
    assert list(stream(scheduler, [1, 2]))[-1].finish_reason is not None
    closing.join()


def test_a_client_that_cannot_be_notified_is_cancelled(scheduler: Scheduler) -> None:
    def gone(update: object) -> None:
        raise RuntimeError("event loop is closed")

    request = scheduler.engine.prepare([1, 2], SamplingSettings(max_new_tokens=100))
    scheduler.submit([request], gone, every_step=True)
    end = time.monotonic() + 10
    while scheduler.n_open and time.monotonic() < end:
        time.sleep(0.01)
    assert request.finish_reason == "cancelled" and len(request.ids) < 5


def test_a_failure_after_a_response_does_not_keep_it_back(
    scheduler: Scheduler, chat_model: ChatModel, caplog: pytest.LogCaptureFixture
) -> None:
    def full(_: object) -> None:
        raise OSError(28, "No space left on device")

    scheduler.on_finished = full
    prompt = chat_model.tokenizer.encode("Question")
    for _ in range(2):
        *_, last = stream(scheduler, prompt)
        assert last.text == greedy(chat_model, prompt, 12) and scheduler.thread.is_alive()
    assert "after a response: OSError: [Errno 28] No space left on device" in caplog.text
