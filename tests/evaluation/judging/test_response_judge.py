"""A panel of judges over responses and over pairs, with a local server that plays all of them."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from instruct_lit.errors import JudgeError
from instruct_lit.evaluation.answer_cache import AnswerCache
from instruct_lit.evaluation.judging.endpoints import OpenAIEndpoint
from instruct_lit.evaluation.judging.judge import Judge, require_judged
from instruct_lit.evaluation.judging.prompt import Choice, JudgePrompt, Score, Verdict
from instruct_lit.evaluation.judging.response_judge import ResponseJudge

for module in ("openai", "scipy", "sklearn"):
    pytest.importorskip(module)
FIELDS = ("instruction", "response", "answer_a", "answer_b")


def play(n: int, body: dict) -> str:
    """`harsh` gives 20 and prefers the answer shown first, `mild` gives 60 and calls ties; `mute` cannot be read."""
    if body["model"] == "mute":
        return "Hm."
    if "one of A and B" in body["messages"][0]["content"]:
        return '{"better": "A"}' if body["model"] == "harsh" else '{"better": "tie"}'
    return json.dumps({"score": {"harsh": 20, "mild": 60}[body["model"]]})


def panel(url: str, models: Sequence[str], verdict: Verdict, combine: str = "mean") -> ResponseJudge:
    judges = [Judge(OpenAIEndpoint(url, model, n_retries=0), AnswerCache(None), n_asks=1) for model in models]
    text = "{{ instruction }} {{ response }} {{ request }}"
    text += " one of A and B: {{ answer_a }} {{ answer_b }}" if isinstance(verdict, Choice) else ""
    return ResponseJudge("openai", "panel", judges, JudgePrompt("plain", text, verdict, FIELDS), combine=combine)


def rows(word: str = "yes") -> list[dict[str, Any]]:
    return [{"instruction": f"Say {i}.", "output": "yes", "response": word} for i in range(6)]


@pytest.mark.parametrize(("combine", "mean"), [("mean", 140 / 3), ("majority", 60)])
def test_scores_of_a_panel(judge_server: Callable, combine: str, mean: float) -> None:
    server, of_rows = judge_server(play), rows()
    found = panel(server.url, ["harsh", "mild", "mild"], Score(), combine).score(of_rows)
    assert found["mean_at_best"] == pytest.approx(mean) and found["n_requests"] == len(server.requests) == 18
    assert list(found["judges"]) == ["harsh", "mild", "mild #3"] and found["judges"]["mild"]["n_requests"] == 6
    assert found["judges"]["harsh"]["score"]["mean"] == 20 and found["panel_agreement"]["harsh, mild"]["n"] == 6
    assert of_rows[0]["judge"]["judges"]["harsh"]["value"] == 20
    require_judged(found)


def test_a_panel_with_an_unreadable_judge_has_not_judged(judge_server: Callable) -> None:
    found = panel(judge_server(play).url, ["harsh", "mild", "mute"], Score()).score(rows())
    assert found["score"]["mean"] == 40 and found["judges"]["mute"]["score"] is None
    with pytest.raises(JudgeError, match="not judged by mute: 6 of 6 verdicts could not be parsed"):
        require_judged(found)


def test_pairs_of_a_panel(judge_server: Callable) -> None:
    of_rows = rows()
    pairs = list(zip(of_rows, [*rows("no")[:3], *rows()[3:]], strict=True))  # three are equal: ties without a question
    found = panel(judge_server(play).url, ["harsh", "mild", "mild"], Choice(), "majority").compare(pairs, of_rows)
    assert found["win_rate"]["mean"] == 0.5 and found["turned"] == 0 and found["n_verdicts"] == 6
    assert found["judges"]["harsh"]["turned"] == 3 and found["judges"]["mild"]["turned"] == 0
    assert [verdict["judge"] for verdict in of_rows[0]["judge"]["verdicts"]] == ["harsh"] * 2 + ["mild"] * 2 + [
        "mild #3"
    ] * 2
