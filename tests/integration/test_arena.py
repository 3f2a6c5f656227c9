"""The page in a real browser: a vote is cast, the names are shown, the leaderboard changes."""

import json
import re
import shutil
import signal
from pathlib import Path

import pytest

from instruct_lit.errors import DataError
from instruct_lit.serving.arena_judging import read_questions
from instruct_lit.serving.arena_rounds import VoteFile
from tests.commands import Command, Start

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.slow
def test_a_vote_is_cast_and_the_leaderboard_changes(start: Start, small_run: Path, tmp_path: Path) -> None:
    pytest.importorskip("gradio")
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if BROWSER is None:
        pytest.skip("no Chromium is installed")
    shutil.copytree(small_run, tmp_path / "other")
    process = start("arena", f"runs=[{small_run},other]", "votes=v.jsonl", "port=0", cwd=tmp_path)
    line = process.first_line()
    assert "run, other at http" in line and "10 questions" in line
    url = line.split(" at ")[1].split(" ")[0]
    with sync.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page, asked = browser.new_page(), []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(url)
        page.wait_for_selector("#instruction textarea")
        assert not page.is_enabled("#vote-model_a")
        page.click("#draw")
        page.wait_for_function("document.querySelector('#instruction textarea').value.length > 0")
        page.click("#ask")
        page.wait_for_selector("#vote-model_a:not([disabled])", timeout=60000)
        assert "other" not in page.inner_text("body").split()  # blind until the vote
        page.click("#vote-model_a")
        page.wait_for_function("document.querySelector('#status').innerText.includes('Your vote has been saved')")
        status = page.inner_text("#status")
        assert not page.is_enabled("#vote-model_a")
        page.click("button[role=tab]:has-text('Leaderboard')")
        page.wait_for_selector("#count:has-text('1 vote')")
        board = page.inner_text("#leaderboard")
        assert "100.0%" in board and "0.0%" in board
        browser.close()
    assert [one for one in asked if not one.startswith((url, "data:", "blob:"))] == []  # nothing from elsewhere
    (vote,) = VoteFile(tmp_path / "v.jsonl").read()
    assert vote["winner"] == "model_a" and status.startswith(f"A was {vote['model_a']}, B was {vote['model_b']}")
    process.send_signal(signal.SIGINT)
    process.wait(30)
    assert "Traceback" not in process.err.read_text()


@pytest.mark.slow
def test_import_reproduces_the_order_and_draws(command: Command, shared_data: Path, tmp_path: Path) -> None:
    battles = shared_data / "arena" / "alpacaeval_judged_battles.jsonl.gz"
    done = command("arena", f"import={battles}", "plot=board.png", cwd=tmp_path)
    models = re.findall(r"^\d+(?: to \d+)? +(\S+)", done.stdout, re.MULTILINE)
    assert models[:4] == ["gpt4_1106_preview", "gpt4", "claude", "gpt-3.5-turbo-0301"]
    assert models[-2:] == ["alpaca-7b", "text_davinci_001"] and len(models) == 16
    assert (tmp_path / "board.png").stat().st_size > 10000


def test_questions_are_those_of_a_file_each_once(tmp_path: Path) -> None:
    file = tmp_path / "q.jsonl"
    rows = [{"instruction": "a"}, {"instruction": "b", "input": "x"}, {"instruction": "a", "input": None}]
    file.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"instruction": "c"}]))
    assert read_questions(str(file), [], 2) == [("a", ""), ("b", "x")]
    for row, message in (
        ({"input": "x"}, "no text in 'instruction'"),
        ({"instruction": "a", "input": ["x"]}, "it must be text"),
    ):
        file.write_text(json.dumps(row))
        with pytest.raises(DataError, match=message):
            read_questions(str(file), [])


def test_errors_are_listed_together(command: Command, small_run: Path, tmp_path: Path) -> None:
    done = command("arena", f"runs=[{small_run}]", "host=0.0.0.0", "questions=none.json", cwd=tmp_path, status=2)
    assert done.stderr.splitlines() == [
        "error: questions=none.json: no such file",
        f"  runs=[{small_run}]: one model; give at least two",
        "  host=0.0.0.0: other machines could reach it; give password=…, or keep 127.0.0.1",
    ]
    done = command("arena", "import=none.jsonl", cwd=tmp_path, status=2)
    assert done.stderr == "error: battles=none.jsonl: no such file\n"


@pytest.mark.slow
def test_a_judge_votes_in_both_orders(
    command: Command, judge_server, small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A judge that always prefers the answer shown first: every pair is won once by each."""
    server = judge_server(lambda number, body: '{"better": "A"}')
    shutil.copytree(small_run, tmp_path / "other")
    monkeypatch.setenv("JUDGE_KEY", "x")
    judge = [
        "judge=openai",
        f"judge.url={server.url}",
        "judge.model=small",
        "judge.api_key_env=JUDGE_KEY",
        "judge.paid=false",
    ]
    judge += [f"runs=[{small_run},other]", "votes=v.jsonl", "generation.max_new_tokens=4"]
    done = command("arena", "n_questions=3", *judge, cwd=tmp_path)
    assert "6 votes appended to v.jsonl, 0 verdicts could not be parsed" in done.stdout
    assert "question" in done.stderr and "question/s" not in done.stdout  # results alone
    votes = VoteFile(tmp_path / "v.jsonl").read()
    assert [(v["model_a"], v["winner"]) for v in votes] == [("run", "model_a"), ("other", "model_a")] * 3
    assert {v["judge"] for v in votes} == {"small"} and done.stdout.count("50.0%") == 2
    done = command("arena", "n_questions=4", *judge, cwd=tmp_path)  # one question more
    assert "2 votes appended to v.jsonl, 6 were in it, 0 verdicts could not be parsed" in done.stdout
    assert len(VoteFile(tmp_path / "v.jsonl").read()) == 8
