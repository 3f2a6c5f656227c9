"""Cached answers survive a killed process, and a second run computes nothing."""

from pathlib import Path

import pytest

from instruct_lit.core.data.template import Template
from instruct_lit.core.data.tokenizer import GPT2Tokenizer
from instruct_lit.core.generation.sampling import SamplingSettings
from instruct_lit.core.model.gpt import GPT
from instruct_lit.errors import DataError
from instruct_lit.evaluation.answer_cache import AnswerCache
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
        def __init__(self, *args: object) -> None: ...

        def generate(self, prompts: list, *args: object, **kwargs: object) -> None:
            assert prompts == []

    monkeypatch.setattr(evaluated_model, "Engine", NoEngine)
    monkeypatch.setattr(evaluated_model, "log_likelihoods", lambda model, pairs, on_scored: [1 / 0 for _ in pairs])
    second = EvaluatedModel(tiny_model, tokenizer, TEMPLATE, AnswerCache(tmp_path / "a"))
    assert second.score(["x", "y"], pairs) == scores and second.write(["One", "Two"], settings) == answers
