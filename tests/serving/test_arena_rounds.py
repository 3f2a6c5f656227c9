"""Rounds of the arena: blind pairs in random order, answers of the engine, one vote each."""

import contextlib
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from instruct_lit.core.data.example import Example
from instruct_lit.core.generation.sampling import SamplingSettings
from instruct_lit.errors import DataError
from instruct_lit.serving.arena_rounds import Arena, VoteFile
from tests.serving.conftest import ALPACA, greedy, tiny_chat_model


@pytest.fixture
def arena(tmp_path: Path) -> Iterator[Arena]:
    chat_models = [tiny_chat_model(ALPACA, seed, f"model {seed}") for seed in range(3)]
    arena = Arena(
        chat_models, SamplingSettings(max_new_tokens=6), VoteFile(tmp_path / "v.jsonl"), [("What?", ""), ("Why?", "x")]
    )
    yield arena
    arena.close()


def test_both_answers_grow_to_those_of_the_engine(arena: Arena) -> None:
    battle = arena.new_round("Name a colour.", "red or blue")
    seen = list(arena.answers(battle))
    for side, number in enumerate(battle.models):
        chat_model = arena.chat_models[number]
        prompt = chat_model.prompt_ids(Example("Name a colour.", "", "red or blue"))
        assert seen[-1][side] == battle.answers[side] == greedy(chat_model, prompt, 6)
    assert len(seen) > 4 and battle.finished


def test_pairs_and_their_order_are_drawn(arena: Arena) -> None:
    drawn = Counter(arena.new_round("a", "").models for _ in range(300))
    assert len(drawn) == 6 and min(drawn.values()) > 20 and all(a != b for a, b in drawn)
    assert {arena.random_question() for _ in range(60)} == set(arena.questions)


def test_one_vote_after_the_answers(arena: Arena) -> None:
    battle = arena.new_round("Name a colour.", "")
    with pytest.raises(DataError, match="the answers are not complete"):
        arena.vote(battle, "tie")
    for _ in arena.answers(battle):
        pass
    names = arena.vote(battle, "model_b")
    assert names == tuple(f"model {number}" for number in battle.models)
    with pytest.raises(DataError, match="this round already has a vote"):
        arena.vote(battle, "model_b")
    (vote,) = arena.votes.read()
    assert (vote["model_a"], vote["model_b"], vote["winner"], vote["judge"]) == (*names, "model_b", "human")
    assert [vote["response_a"], vote["response_b"]] == battle.answers and vote["settings"]["seed"] == battle.seed


def test_two_buttons_at_once_are_one_vote(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    battle = arena.new_round("Name a colour.", "")
    for _ in arena.answers(battle):
        pass
    append, both = arena.votes.append, threading.Barrier(2)

    def slowly(vote: dict) -> None:
        time.sleep(0.05)
        append(vote)

    def vote(winner: str) -> None:
        both.wait()
        with contextlib.suppress(DataError):
            arena.vote(battle, winner)

    monkeypatch.setattr(arena.votes, "append", slowly)
    threads = [threading.Thread(target=vote, args=(winner,)) for winner in ("model_a", "model_b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [vote["winner"] for vote in arena.votes.read()] == [battle.winner]


def test_empty_and_too_long_questions_are_errors(arena: Arena) -> None:
    with pytest.raises(DataError, match="the instruction is empty"):
        arena.new_round(" \n", "")
    with pytest.raises(DataError, match="a prompt has .* tokens; allowed are 1 to 127"):
        next(arena.answers(arena.new_round("word " * 200, "")))
    assert all(scheduler.n_open == 0 for scheduler in arena.schedulers)


def test_a_reader_that_leaves_cancels_both(arena: Arena) -> None:
    answers = arena.answers(arena.new_round("Name a colour.", ""))
    next(answers)
    answers.close()
    arena.close()
    assert all(scheduler.n_open == 0 for scheduler in arena.schedulers)


def test_a_model_that_fails_gives_no_answer_to_vote_on(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    battle = arena.new_round("Name a colour.", "")
    monkeypatch.setattr(arena.schedulers[battle.models[1]].engine, "step", lambda: 1 / 0)
    with pytest.raises(DataError, match="a model failed while it answered"):
        list(arena.answers(battle))
    with pytest.raises(DataError, match="the answers are not complete"):
        arena.vote(battle, "tie")


def test_votes_of_published_battles_are_read_in_either_spelling(tmp_path: Path) -> None:
    rows = [{"model_a": "x", "model_b": "y", "winner": winner} for winner in ("tie (bothbad)", "model_b", "none")]
    (tmp_path / "v.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [battle.winner for battle in VoteFile(tmp_path / "v.jsonl").battles()] == ["both_bad", "model_b"]
