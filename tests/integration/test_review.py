"""A review of thirty responses in a real browser by the keyboard; its figures are recomputed by other code."""

import json
import re
import shutil
import signal
from pathlib import Path
from random import Random
from typing import Any

import pytest

from instruct_lit.config.check_commands import check_command
from instruct_lit.errors import ConfigError
from instruct_lit.review import rows_of
from tests.commands import Command, Start
from tests.configs import composed

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
LABELS = ("right", "partly", "wrong", "off-topic", "rude")


def read(page: Any, reviewer: str, keys: list[int], url: str) -> None:
    """Give the labels of the keys to the next responses."""
    page.goto(url)
    page.fill("#reviewer", reviewer)
    page.keyboard.press("Enter")
    page.wait_for_selector("#reading:not([hidden])")
    n_before = int(page.inner_text("#count").split()[0])
    for n, key in enumerate(keys, start=n_before + 1):
        assert "model-" not in page.inner_text("body")  # blind
        page.keyboard.press(str(key))
        page.wait_for_function(f"document.querySelector('#count').textContent.startsWith('{n} of')")


@pytest.mark.slow
def test_thirty_responses_are_reviewed_by_the_keyboard(start: Start, command: Command, tmp_path: Path) -> None:
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    metrics, stats = pytest.importorskip("sklearn.metrics"), pytest.importorskip("scipy.stats")
    if BROWSER is None:
        pytest.skip("no Chromium is installed")
    random = Random(0)
    for name in ("model-a", "model-b"):
        rows = [
            {"id": i, "instruction": f"Question {i}?", "output": f"the answer {i} is this", "judge": {"value": random.randrange(100)},
             "response": " ".join(random.choices(["the", "answer", "is", "not", "known", str(i)], k=5))}
            for i in range(15)
        ]  # fmt: skip
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    given = ("run=[model-a.jsonl,model-b.jsonl]", "reviews=labels.jsonl", "labels=[rude]", "port=0")
    keys = {"ann": [random.choice((1, 1, 2, 3, 4, 5)) for _ in range(30)]}
    keys["bob"] = [key if random.random() < 0.6 else random.randint(1, 4) for key in keys["ann"]]
    with sync.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page, asked = browser.new_page(), []
        page.on("request", lambda request: asked.append(request.url))
        process = start("review", *given, cwd=tmp_path)
        url = re.search(r"30 responses to review at (\S+)", process.first_line()).group(1)
        read(page, "ann", keys["ann"][:10], url)
        page.keyboard.press("n")
        page.keyboard.type("1 of 2 halves")  # digits in a note are no labels
        page.keyboard.press("Escape")
        page.keyboard.press("4")
        page.wait_for_function("document.querySelector('#count').textContent.startsWith('11 of')")
        page.keyboard.press("u")
        page.wait_for_function("document.querySelector('#count').textContent.startsWith('10 of')")
        assert page.input_value("#note") == "1 of 2 halves" and page.inner_text("#labels .last").endswith("off-topic")
        process.send_signal(signal.SIGKILL)
        page.keyboard.press("1")
        page.wait_for_selector("#error:has-text('nothing was saved')")
        process = start("review", *given, cwd=tmp_path)
        url = re.search(r"30 responses to review at (\S+)", process.first_line()).group(1)
        read(page, "ann", keys["ann"][10:], url)
        page.wait_for_selector("#end:not([hidden])")
        read(browser.new_page(), "bob", keys["bob"], url)
        page.click("#end a")
        tables = {name: page.inner_text(f"#{name}") for name in ("rates", "agreement", "predictors")}
        text = page.inner_text("body")
        browser.close()
    assert [one for one in asked if not one.startswith(("http://127.0.0.1:", "data:"))] == []  # nothing from elsewhere
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0 and "60 labels of 30 responses" in process.out.read_text()

    # The figures from the files alone.
    given_labels: dict[str, dict[str, str]] = {"ann": {}, "bob": {}}
    for record in map(json.loads, (tmp_path / "labels.jsonl").read_text().splitlines()):
        given_labels[record["reviewer"]][record["instruction"] + record["response"]] = record["label"]
    texts = list(given_labels["ann"])
    ann, bob = ([given_labels[who][text] for text in texts] for who in keys)
    assert sorted(ann) == sorted(LABELS[key - 1] for key in keys["ann"])
    assert sorted(bob) == sorted(LABELS[key - 1] for key in keys["bob"])
    differ = [a != b for a, b in zip(ann, bob, strict=True)]
    assert f"{metrics.cohen_kappa_score(ann, bob):.3f}\t{1 - sum(differ) / 30:.3f}" in tables["agreement"]
    assert f"{sum(differ)} responses have different labels" in text and "model-a.jsonl" in text
    shares = [100 * (ann + bob).count(label) / 60 for label in LABELS]
    assert re.findall(r"(\d+) %", tables["rates"])[:5] == [f"{share:.0f}" for share in shares]
    values = {"right": 1.0, "partly": 0.5, "wrong": 0.0, "off-topic": 0.0}
    rows_of = {
        name: {
            row["instruction"] + row["response"]: row
            for row in map(json.loads, (tmp_path / f"{name}.jsonl").read_text().splitlines())
        }
        for name in ("model-a", "model-b")
    }
    judged = {text: row["judge"]["value"] for rows in rows_of.values() for text, row in rows.items()}
    pairs = [
        (sum(found) / len(found), judged[text])
        for text, *both in zip(texts, ann, bob, strict=True)
        if (found := [values[label] for label in both if label in values])
    ]
    rho = stats.spearmanr(*zip(*pairs, strict=True)).statistic
    assert re.search(rf"judge\s+{re.escape(f'{rho:+.3f}')}\s", tables["predictors"])
    # `evaluate` finds the labels of one model among those of both.
    command("evaluate", "responses=model-a.jsonl", "reviews=labels.jsonl", "hydra.run.dir=out", cwd=tmp_path)
    people = json.loads((tmp_path / "out" / "evaluation.json").read_text())["people"]
    assert people["n_labels"] == 30 and people["n_responses"] == 15
    own = [(a, b) for text, a, b in zip(texts, ann, bob, strict=True) if text in rows_of["model-a"]]
    kappa = metrics.cohen_kappa_score(*zip(*own, strict=True))
    assert people["agreement"]["ann, bob"]["kappa"] == pytest.approx(kappa)
    page_text = (tmp_path / "out" / "report.html").read_text()
    assert "<h2>People</h2>" in page_text and f"{kappa:.3f}" in page_text


def test_errors_are_listed_together(tmp_path: Path) -> None:
    file, empty = tmp_path / "a.jsonl", tmp_path / "empty"
    file.write_text('{"instruction": "q", "output": "a", "response": "b"}')
    empty.mkdir()
    config = composed("review", f"run=[{file},none]", "labels=[right]", "host=0.0.0.0")
    with pytest.raises(ConfigError) as refused:
        check_command("review", config)
    for message in (
        "run=none: no such file or folder",
        "labels=['right']: give different labels, none of them empty or one of the four",
        "host=0.0.0.0: other machines could reach it; give password=… or INSTRUCT_LIT_PASSWORD, or keep 127.0.0.1",
    ):
        assert message in str(refused.value)
    (row,) = rows_of(config, file)
    assert row["scores"]["exact_match"] == 0 and "checks" not in row["scores"]
    with pytest.raises(ConfigError, match=r"empty: it has no responses.jsonl; `evaluate run=.*empty` writes one"):
        rows_of(config, empty)
