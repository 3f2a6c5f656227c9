"""A review: the order, labels, undo and resumption, and who may call its page."""

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from instruct_lit.errors import DataError
from instruct_lit.serving.review import Review


def rows(*responses: str) -> list[dict[str, Any]]:
    return [
        {"id": i, "instruction": f"q{i}", "input": "", "output": "a", "response": text, "scores": {"f1": float(i % 2)}}
        for i, text in enumerate(responses)
    ]


@pytest.fixture
def opened(tmp_path: Path) -> Callable[..., Review]:
    sources = {"one": rows("a", "b", "c"), "two": rows("a", "x", "y")}
    return lambda **options: Review(sources, tmp_path / "labels.jsonl", ["rude"], **options)


def test_each_response_is_shown_once_without_its_model_and_a_review_resumes(opened: Callable[..., Review]) -> None:
    review = opened()
    seen = []
    state = review.state(" ann ")
    for label in ("right", "rude", "wrong"):
        seen.append((state["instruction"], state["response"]))
        assert (
            "sources" not in state
            and "one" not in json.dumps(state)
            and (state["n_labels"], state["n"]) == (len(seen) - 1, 5)
        )
        state = review.label("ann", state["place"], label, "a note")
    assert review.state("bob")["place"] == 0  # in the same order
    review.label("bob", 0, "wrong")
    review.log.path.write_bytes(review.log.path.read_bytes() + b'{"reviewer": "ann", "id"')  # a crash
    review = opened()
    state = review.state("ann")
    while state["place"] is not None:
        seen.append((state["instruction"], state["response"]))
        state = review.label("ann", state["place"], "partly")
    assert sorted(seen) == [("q0", "a"), ("q1", "b"), ("q1", "x"), ("q2", "c"), ("q2", "y")]
    found = opened().figures()
    assert (found["n_labels"], found["n_responses"]) == (6, 5) and found["rates"]["rude"]["mean"] == 0.2
    first = found["rows"][0]
    assert first["id"] == 0 and found["disagreements"] == [first["number"]]
    assert [label["label"] for label in first["labels"]] == ["right", "wrong"]
    assert (
        set(found["sources"]) == {"one", "two"} and found["predictors"]["f1"]["n"] == 4
    )  # a label of one's own has no value


def test_undo_withdraws_the_last_label_also_after_a_restart(opened: Callable[..., Review]) -> None:
    review = opened()
    review.label("ann", 0, "right", "sure")
    review.label("ann", 1, "wrong")
    review.label("ann", 0, "partly", "not so sure")
    state = opened().undo("ann")
    assert (state["place"], state["label"], state["note"], state["n_labels"]) == (0, "partly", "not so sure", 1)
    review = opened()
    assert review.state("ann")["place"] == 0 and review.undo("ann")["n_labels"] == 0
    with pytest.raises(DataError, match="no label to withdraw"):
        opened().undo("ann")
    assert opened().figures()["n_labels"] == 0


def test_what_a_page_would_not_send_is_refused_and_nothing_saved(opened: Callable[..., Review]) -> None:
    review = opened()
    for given, message in (
        (("ann", 5, "right"), "no such response or label"),
        (("ann", True, "right"), "no such response or label"),
        (("ann", 0, "great"), "no such response or label"),
        (("ann", 0, "right", "x" * 4001), "at most 4000"),
        (("  ", 0, "right"), "not a name"),
        ((["ann"], 0, "right"), "not a name"),
    ):
        with pytest.raises(DataError, match=message):
            review.label(*given)
    assert review.log.path.read_bytes() == b""


def test_a_page_of_another_review_labels_nothing(opened: Callable[..., Review]) -> None:
    """The program was started again with other responses while the page was open."""
    state = opened().state("ann")
    other = Review({"one": rows("d", "e", "f")}, opened().log.path)
    with pytest.raises(DataError, match="started again with other responses; reload the page"):
        other.label("ann", state["place"], "right", "", state["order"])
    assert opened().label("ann", state["place"], "right", "", state["order"])["n_labels"] == 1


def test_the_page_is_for_its_own_host_and_password(opened: Callable[..., Review]) -> None:
    client = pytest.importorskip("starlette.testclient").TestClient
    from instruct_lit.serving.review_page import make_app

    review = opened()
    own = client(make_app(review), base_url="http://127.0.0.1")
    page = own.get("/")
    assert (
        page.status_code == 200
        and "5 answers" in page.text
        and page.headers["content-security-policy"].startswith("default-src 'self' ")
    )
    assert "<kbd>5</kbd>rude" in page.text and "No answer is labelled yet" in own.get("/results").text
    assert (
        own.post("/label", json={"reviewer": "<b>", "place": 0, "order": review.order, "label": "wrong"}).json()[
            "n_labels"
        ]
        == 1
    )
    assert "&lt;b&gt;:" in own.get("/results").text
    for body in ("{", "[]", '{"name": 1}', '{"reviewer": {}}', "[" * 100_000):
        assert own.post("/state", content=body, headers={"Content-Type": "application/json"}).status_code == 400
    assert own.post("/state", content='{"reviewer": "ann"}', headers={"Content-Type": "text/plain"}).status_code == 400
    for headers in ({"Host": "evil.example"}, {"Origin": "https://evil.example"}):
        assert own.post("/state", json={"reviewer": "ann"}, headers=headers).status_code == 403
    guarded = client(make_app(review, "secret"), base_url="http://models.example")
    assert guarded.get("/results").status_code == 401
    for password, status in (("secret", 200), ("Secret", 401)):
        given = {"Authorization": "Basic " + base64.b64encode(f"review:{password}".encode()).decode()}
        assert guarded.get("/", headers=given).status_code == status
