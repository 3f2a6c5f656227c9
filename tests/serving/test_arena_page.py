"""The arena's page: names are shown as they are, nothing is loaded from elsewhere, foreign pages are refused."""

import importlib.util
import json
import multiprocessing
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from instruct_lit.serving import arena_page

pytestmark = pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="no gradio")
NAMES = ["![x](https://evil.example/x.png)", "<img src=//evil.example/x>**b** `c` $$d$$ [e]"]


def serve(folder: Path, told: Connection) -> None:
    """In a process of its own, since gradio leaves sockets and event loops behind: the page, and what its functions return."""
    import gradio

    from instruct_lit.core.generation.sampling import SamplingSettings
    from instruct_lit.errors import DataError
    from instruct_lit.serving.arena_rounds import Arena, VoteFile
    from tests.serving.conftest import ALPACA, tiny_chat_model

    def message(call: Callable[[], Any]) -> str:
        with pytest.raises(gradio.Error) as raised:
            call()
        return str(raised.value.message)

    def fail(battle: Any) -> Iterator[None]:
        raise DataError("<img src=x>; &")
        yield

    models = [tiny_chat_model(ALPACA, seed, name) for seed, name in enumerate(NAMES)]
    arena = Arena(models, SamplingSettings(max_new_tokens=3), VoteFile(folder / "votes.jsonl"))
    page, url = arena_page.open_page(arena, "127.0.0.1", 0, None)
    functions = [block.fn for block in page.fns.values()]
    ask = next(fn for fn in functions if fn.__name__ == "ask")
    cast = next(fn for fn in functions if fn.__defaults__ == ("tie",))
    battle = list(ask("Name a colour.", ""))[-1][0]
    shown = cast(battle)
    shown[-1].savefig(folder / "board.png")  # no name is a formula
    arena.answers = fail  # type: ignore[method-assign]
    refused = message(lambda: list(ask("x", "")))
    arena.votes.path.unlink()
    again = message(lambda: cast(battle))
    names = [row[1] for row in shown[-2]]
    told.send({"url": url, "status": shown[1], "models": names, "message": refused, "second": again})
    threading.Event().wait()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    ours, theirs = multiprocessing.Pipe(duplex=False)
    folder = tmp_path_factory.mktemp("arena")
    process = multiprocessing.get_context("forkserver").Process(target=serve, args=(folder, theirs), daemon=True)
    process.start()
    theirs.close()
    yield ours.recv()
    process.kill()
    process.join()


@pytest.fixture
def url(served: dict[str, Any]) -> str:
    return str(served["url"])


def fetch(url: str, **headers: str) -> tuple[int, Any, str]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, None, headers), timeout=30) as answer:
            return answer.status, answer.headers, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read().decode()


def test_the_page_loads_nothing_from_elsewhere(url: str) -> None:
    status, headers, text = fetch(url)
    assert status == 200 and headers["content-security-policy"].startswith("default-src 'self' ")
    assert "http" not in headers["content-security-policy"]  # a browser enforces it
    loaded = re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=\\?\"([^\"]*)", text)
    assert loaded and [one for one in loaded if re.match(r"(?:https?:)?//", one)] == []
    config = json.loads(fetch(url + "config")[2])
    assert config["analytics_enabled"] is False
    assert [fetch(url + path)[0] for path in ("docs", "redoc")] == [404, 404]


def test_a_page_elsewhere_cannot_use_the_arena(url: str) -> None:
    for headers in ({"Host": "evil.example"}, {"Origin": "https://evil.example"}):
        for path in ("", "config", "gradio_api/info", "gradio_api/queue/data?session_hash=x"):
            status, _, text = fetch(url + path, **headers)
            assert status == 403 and json.loads(text)["error"]["code"] == "host_not_allowed"
    assert fetch(url, Host="localhost:1")[0] == 200


def test_names_have_no_meaning_in_markdown() -> None:
    shown = arena_page.as_markdown("![x](https://e.org) <b>*a* $$q$$\n# h")
    assert shown == r"\!\[x\]\(https\:\/\/e\.org\) \<b\>\*a\* \$\$q\$\$ \# h"
    assert arena_page.as_markdown("run 7 ünï") == "run 7 ünï"


def test_the_names_after_a_vote_are_escaped(served: dict[str, Any]) -> None:
    for name in NAMES:
        assert name not in served["status"] and arena_page.as_markdown(name) in served["status"]
    assert set(served["models"]) == set(NAMES)  # cells of text


def test_messages_have_no_html(served: dict[str, Any]) -> None:
    assert served["message"] == "&lt;img src=x&gt;; &amp;"
    assert served["second"] == "this round already has a vote; ask another question"
