"""Cached answers survive a killed process, and a second run computes nothing."""

from collections.abc import Callable
from pathlib import Path

import pytest

from instruct_lit.accel.bf16_weights import BF16Weights
from instruct_lit.core.data.example import Example
from instruct_lit.core.data.template import Template
from instruct_lit.core.data.tokenizer import GPT2Tokenizer
from instruct_lit.core.generation.engine import Engine
from instruct_lit.core.generation.responses import answer
from instruct_lit.core.generation.sampling import SamplingSettings
from instruct_lit.core.model.gpt import GPT
from instruct_lit.errors import DataError
from instruct_lit.evaluation.answer_cache import AnswerCache, CachedResponses
from instruct_lit.suites import evaluated_model
from instruct_lit.suites.evaluated_model import EvaluatedModel

TEMPLATE = Template("short", "{{ instruction }}: {{ response }}")


def test_a_truncated_line_is_ignored(tmp_path: Path) -> None:
    path = tmp_path / "new" / "answers.jsonl"
    cache = AnswerCache(path)
    cache.add([(("score", "a", "b"), [-1.5, True]), (("write", "é"), "text")])
    path.write_text(path.read_text()[:-4], encoding="utf-8")  # killed while writing
    AnswerCache(path).add([(("c",), 3)])
    again = AnswerCache(path)
    assert again.get("score", "a", "b") == [-1.5, True] and again.get("c") == 3
    assert again.get("write", "é") is None and again.get("score", "b", "a") is None


def test_an_unusable_file_is_refused_and_foreign_lines_are_ignored(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(
        DataError, match=r"folder: the cache cannot be used \(Is a directory\); free disk space or dele"
    ):
        AnswerCache(tmp_path / "folder")
    (tmp_path / "a").write_bytes(b"\xff\n3\n" + b"[" * 100_000)
    cache = AnswerCache(tmp_path / "a")
    cache.add([(("key",), "value")])
    assert AnswerCache(tmp_path / "a").values() == cache.values() == ["value"]


def test_what_is_cached_is_not_computed_again(
    tmp_path: Path, tiny_model: GPT, tokenizer: GPT2Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs, settings = [([1, 2], [3]), ([1, 2], [4, 5])], [SamplingSettings(max_new_tokens=4)] * 2
    first = EvaluatedModel(tiny_model, tokenizer, TEMPLATE, AnswerCache(tmp_path / "a"))
    scores, answers = first.score(["x", "y"], pairs), first.write(["One", "Two"], settings)

    class NoEngine:
        def __init__(self, *args: object, **options: object) -> None: ...

        def generate(self, prompts: list, *args: object, **kwargs: object) -> None:
            assert prompts == []

    monkeypatch.setattr(evaluated_model, "Engine", NoEngine)
    monkeypatch.setattr(evaluated_model, "log_likelihoods", lambda model, pairs, on_scored: [1 / 0 for _ in pairs])
    second = EvaluatedModel(tiny_model, tokenizer, TEMPLATE, AnswerCache(tmp_path / "a"))
    assert second.score(["x", "y"], pairs) == scores and second.write(["One", "Two"], settings) == answers


def test_an_interrupted_run_resumes_from_its_cache(
    tiny_model: GPT, tokenizer: GPT2Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = [(i, Example(f"word {i}", "x"), [i + 1, 2, 3]) for i in range(5)]
    settings = SamplingSettings(max_new_tokens=3, temperature=1.0, seed=4)
    whole = answer(Engine(tiny_model, tokenizer), TEMPLATE, examples, settings)
    path = tmp_path / "kept.jsonl"

    def cached(engine: Engine, settings: SamplingSettings, on_answered: Callable[[], object] = int) -> list[dict]:
        known = CachedResponses(AnswerCache(path), engine, settings, TEMPLATE)
        return answer(engine, TEMPLATE, examples, settings, on_answered, known)

    def stop() -> None:
        if path.read_text().count("\n") == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached(Engine(tiny_model, tokenizer, max_rows=1), settings, stop)
    done: list[int] = []
    submitted: list[list[int]] = []
    prepare = Engine.prepare
    monkeypatch.setattr(Engine, "prepare", lambda self, ids, s: submitted.append(ids) or prepare(self, ids, s))
    assert cached(Engine(tiny_model, tokenizer), settings, lambda: done.append(1)) == whole
    assert len(done) == 5 and len(submitted) == 3
    warmer = SamplingSettings(max_new_tokens=3, temperature=2.0, seed=4)
    cached(Engine(tiny_model, tokenizer), warmer)
    assert len(submitted) == 8  # other settings, other answers
    for _ in range(2):
        cached(Engine(tiny_model, tokenizer, make_weights=BF16Weights), warmer)
    assert len(submitted) == 13  # another precision, other answers, and those are kept too
