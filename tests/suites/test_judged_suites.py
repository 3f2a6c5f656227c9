"""MT-Bench and Arena-Hard on literal questions, with a judge that a local server plays."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from instruct_lit.config.check_commands import check_command
from instruct_lit.config.compose import CONF
from instruct_lit.config.judge_builders import judge_prompt_of
from instruct_lit.core.data.template import Template
from instruct_lit.errors import ConfigError, JudgeError
from instruct_lit.evaluation.answer_cache import AnswerCache
from instruct_lit.evaluation.judging.endpoints import OpenAIEndpoint
from instruct_lit.evaluation.judging.judge import Judge
from instruct_lit.evaluation.judging.response_judge import ResponseJudge
from instruct_lit.evaluation.remote_model import CompletionEndpoint, RemoteModel
from instruct_lit.suites import arena_hard, mt_bench
from instruct_lit.suites.evaluated_model import EvaluatedModel
from instruct_lit.suites.suite import BenchmarkError, RunRequest, Suite
from tests.configs import composed

for module in ("openai", "sklearn"):
    pytest.importorskip(module)
QUESTIONS = [
    {"question_id": 1, "category": "math", "turns": ["What is 3 + 4?", "Double it."], "reference": ["7", "14"]},
    {"question_id": 2, "category": "math", "turns": ["What is 9 - 2?", "Halve it."], "reference": ["7", "3.5"]},
    {"question_id": 3, "category": "writing", "turns": ["Write a line on rain.", "Make it rhyme."]},
]
ARENA = [
    {"uid": f"q{i}", "category": "hard_prompt" if i < 4 else "other", "prompt": f"Sort list number {i}."}
    for i in range(5)
]


def jsonl(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def request_of(suite: str, folder: Path, url: str, limit: int | None = None) -> RunRequest:
    """A request for the suite as it is configured, with a judge at `url`."""
    options = OmegaConf.to_container(OmegaConf.load(CONF / "suite" / f"{suite}.yaml"))["options"]  # type: ignore[index,call-overload]
    settings = {"prompt": "reference", "pairwise_prompt": "pairwise", "scale": [0, 100], "explain": False}
    settings |= options.get("judge", {})
    prompt = judge_prompt_of(OmegaConf.create(settings), pairwise=suite == "arena_hard")
    judge = Judge(OpenAIEndpoint(url, "small", n_retries=0), AnswerCache(None), n_asks=1)
    own = ResponseJudge("openai", "small", [judge], prompt, tuple(settings["scale"]))
    of_suite = Suite(suite, [], limit=limit, options={**options, "max_new_tokens": 4})
    return RunRequest(of_suite, folder / "hub", folder / "cache", folder, folder / "log", judge=own)


def grade(number: int, body: dict) -> str:
    """9 for a first turn, 4 for a second one, nothing that can be read for writing."""
    asked = body["messages"][0]["content"]
    return "Nice." if "rain" in asked else json.dumps({"score": 4 if "User:" in asked else 9})


def test_both_turns_of_mt_bench_are_judged(judge_server: Callable, evaluated: EvaluatedModel, tmp_path: Path) -> None:
    server = judge_server(grade)
    jsonl(tmp_path / "hub" / mt_bench.REPO / mt_bench.QUESTIONS, QUESTIONS)
    figures = mt_bench.run(evaluated, request_of("mt_bench", tmp_path, server.url))
    rows = [json.loads(line) for line in (tmp_path / "judged.jsonl").read_text().splitlines()]
    asked = [request["messages"][0]["content"] for request in server.requests]
    assert len(asked) == 6 and sum("A correct answer" in prompt for prompt in asked) == 4
    (second,) = [prompt for prompt in asked if "Double it." in prompt]
    assert f"User: What is 3 + 4?\nAssistant: {rows[0]['response']}".strip() in second and "\n14\n" in second
    assert "from 1 to 10" in second
    maths = figures["math"]
    assert (maths.metric, maths.value, maths.n, maths.stderr) == ("score", 6.5, 2, 0) and list(figures) == [
        "math",
        "writing",
    ]
    assert maths.others == {"first_turn": 9, "second_turn": 4, "n_unread_verdicts": 0}
    assert figures["writing"].value == 1 and figures["writing"].others["n_unread_verdicts"] == 2
    assert mt_bench.items_of(tmp_path, "math", "score") == [
        ("What is 3 + 4?\n\nDouble it.", 6.5),
        ("What is 9 - 2?\n\nHalve it.", 6.5),
    ]
    assert mt_bench.items_of(tmp_path, "writing", "score")[0][1] is None


def test_a_template_with_turns_and_an_endpoint_get_the_conversation(
    judge_server: Callable, evaluated: EvaluatedModel, tmp_path: Path
) -> None:
    turns = Template("turns", "Q: {{ instruction }}\nA:{{ response }}", "\nQ: {{ instruction }}\nA:{{ response }}")
    model = EvaluatedModel(evaluated.model, evaluated.tokenizer, turns)
    seen: list[str] = []
    fit = model.fit
    model.fit = lambda prompt, settings: seen.append(model.tokenizer.decode(list(prompt))) or fit(prompt, settings)  # type: ignore[method-assign]
    server = judge_server(lambda n, body: json.dumps({"score": 5}))
    jsonl(tmp_path / "hub" / mt_bench.REPO / mt_bench.QUESTIONS, QUESTIONS[:1])
    mt_bench.run(model, request_of("mt_bench", tmp_path, server.url))
    first, second = seen
    assert first == "Q: What is 3 + 4?\nA:" and second.startswith(first) and second.endswith("\nQ: Double it.\nA:")
    hosted = judge_server(lambda n, body: f"reply {len(body['messages'])}")
    endpoint = CompletionEndpoint(hosted.url, "small", constrained=False, n_retries=0)
    remote = RemoteModel(Judge(endpoint, AnswerCache(None), n_asks=1), label="hosted")
    mt_bench.run(remote, request_of("mt_bench", tmp_path, server.url))
    assert [message["content"] for message in hosted.requests[1]["messages"]] == [
        "What is 3 + 4?",
        "reply 1",
        "Double it.",
    ]


def test_a_judge_that_cannot_be_read_ends_the_suite_with_everything_kept(
    judge_server: Callable, evaluated: EvaluatedModel, tmp_path: Path
) -> None:
    server = judge_server(lambda n, body: "Nice.")
    jsonl(tmp_path / "hub" / mt_bench.REPO / mt_bench.QUESTIONS, QUESTIONS)
    with pytest.raises(JudgeError, match="not judged: 4 of 4 verdicts .* in judged.jsonl and"):
        mt_bench.run(evaluated, request_of("mt_bench", tmp_path, server.url, limit=1))
    assert len((tmp_path / "judged.jsonl").read_text().splitlines()) == 4
    jsonl(tmp_path / "hub" / mt_bench.REPO / mt_bench.QUESTIONS, [{"question_id": 1, "category": "math"}])
    with pytest.raises(BenchmarkError, match=r"question.jsonl.*: not a record of question.jsonl \(KeyError: 'turns'\)"):
        mt_bench.run(evaluated, request_of("mt_bench", tmp_path, server.url))


@pytest.mark.slow
def test_arena_hard_is_won_against_the_baseline(
    judge_server: Callable, evaluated: EvaluatedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def verdict(number: int, body: dict) -> str:
        shown = body["messages"][0]["content"]
        wins = "list number 0" in shown or "list number 1" in shown  # for our model, wherever it stands
        ours_first = shown.index("Sorted.") > shown.index("Answer B:")
        return json.dumps({"better": "A" if wins == ours_first else "B"})

    server = judge_server(verdict)
    place = tmp_path / "hub" / arena_hard.REPO / "data" / "arena-hard-v2.0"
    jsonl(place / "question.jsonl", ARENA)
    with pytest.raises(
        BenchmarkError, match="; put data/arena-hard-v2.0/model_answer/o3-mini-2025-01-31.jsonl of the hub"
    ):
        arena_hard.run(evaluated, request_of("arena_hard", tmp_path, server.url))
    answers = [
        {"uid": row["uid"], "messages": [{"role": "user"}, {"role": "assistant", "content": {"answer": "Sorted."}}]}
        for row in ARENA
    ]
    for name in ("o3-mini-2025-01-31", "gemini-2.0-flash-001"):
        jsonl(place / "model_answer" / f"{name}.jsonl", answers)
    figures = arena_hard.run(evaluated, request_of("arena_hard", tmp_path, server.url))
    assert list(figures) == ["hard_prompt"]  # other categories have no baseline
    figure = figures["hard_prompt"]
    assert (figure.metric, figure.value, figure.n) == ("win_rate", 0.5, 4) and len(server.requests) == 8
    assert figure.others == {"n_unread_verdicts": 0}  # at equal style none of four answers was seen
    monkeypatch.setattr(arena_hard, "N_FOR_STYLE", 4)
    again = arena_hard.run(evaluated, request_of("arena_hard", tmp_path, server.url))["hard_prompt"]
    assert 0 < again.others["style_controlled_win_rate"] < 1
    assert arena_hard.items_of(tmp_path, "hard_prompt", "win_rate") == [
        (row["prompt"], float(i < 2)) for i, row in enumerate(ARENA[:4])
    ]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["suite=mt_bench"], "suite=mt_bench: it needs a judge; add judge=openai"),
        (["suite=mmlu", "judge=ollama"], "judge=…: suite=mmlu does not use it"),
        (["suite=arena_hard", "judge=scores", "judge.path=x"], "judge=scores: cannot compare models"),
        (["suite=mt_bench", "judge=ollama", "endpoint.url=http://h/v1", "endpoint.model=x", "endpoint.chat=false"], "its questions are messages"),
        (["suite=mt_bench", "judge=ollama", "judge.prompt=rubric"], "judge.prompt=rubric: suite=mt_bench sets it; give suite.options.judge.prompt=…"),
        (["suite=mt_bench", "judge=ollama", "suite.options.judge.prompt=mine"], "suite.options.judge.prompt=mine: no such prompt"),
        (["suite=mt_bench", "judge=ollama", "suite.options.judge.scale=[9,1]"], "suite.options.judge.scale=[9, 1]: give two integers"),
        (["suite=mt_bench", "judge=ollama", "+suite.options.judge.promt=mine"], "suite.options.judge: Key 'promt' not in"),
        (["suite=mt_bench", "judge=ollama", "judge.max_unparsed=1.5"], "judge.max_unparsed=1.5: must be at most 1"),
    ],
)  # fmt: skip
def test_impossible_values(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        check_command("benchmark", composed("benchmark", "run=.", *overrides))
    assert message in str(refused.value)
