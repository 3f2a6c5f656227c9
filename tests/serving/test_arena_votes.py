"""Votes on disk: kept once cast, whatever a crash left; several writers at a time."""

import errno
import os
import threading
from pathlib import Path

import pytest

from instruct_lit.errors import DataError
from instruct_lit.evaluation.ratings import Battle
from instruct_lit.reports.leaderboard import show_leaderboard
from instruct_lit.serving.arena_rounds import VoteFile

VOTE = {"model_a": "a", "model_b": "b", "winner": "tie", "response_a": "é\n🙂"}


@pytest.mark.parametrize("cut", [1, 10, 40])
def test_a_line_that_a_crash_left_half_costs_only_itself(tmp_path: Path, cut: int) -> None:
    votes = VoteFile(tmp_path / "new" / "votes.jsonl")
    votes.append(VOTE)
    votes.append({**VOTE, "winner": "model_a"})
    votes.path.write_bytes(votes.path.read_bytes()[:-cut])
    votes = VoteFile(votes.path)
    votes.append({**VOTE, "winner": "both_bad"})
    kept = ["tie", "both_bad"] if cut > 1 else ["tie", "model_a", "both_bad"]
    assert [vote["winner"] for vote in votes.read()] == kept
    assert votes.read()[0] == VOTE and votes.battles()[0] == Battle("a", "b", "tie")


def test_writers_do_not_cut_into_each_other(tmp_path: Path) -> None:
    def write(name: int) -> None:
        own = VoteFile(tmp_path / "votes.jsonl")
        for number in range(25):
            own.append({**VOTE, "id": [name, number], "response_a": "x" * 2000})

    threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ids = [tuple(vote["id"]) for vote in VoteFile(tmp_path / "votes.jsonl").read()]
    assert sorted(ids) == [(name, number) for name in range(4) for number in range(25)]


def test_a_folder_that_is_not_writable_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"votes=.*not writable"):
        VoteFile(tmp_path / "file" / "votes.jsonl")


def test_a_full_disk_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    votes = VoteFile(tmp_path / "votes.jsonl")
    write = os.write
    for n_missing in (10, 1):  # the second time behind a half line, and all but the line's end fits
        monkeypatch.setattr(os, "write", lambda file, data, n=n_missing: write(file, data[:-n]))
        with pytest.raises(DataError, match="the disk is full; the vote was not saved"):
            votes.append(VOTE)

    def none_left(file: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", none_left)
    with pytest.raises(DataError, match="No space left on device; the vote was not saved"):
        votes.append(VOTE)


def test_lines_that_are_no_vote_are_skipped(tmp_path: Path) -> None:
    votes = VoteFile(tmp_path / "votes.jsonl")
    votes.append(VOTE)
    hostile = [
        b"[" * 100_000, b'{"a":' * 100_000, b"\xff\xfe", b"\x00", b"null", b"[]", b'"x"', b"1" * 10_000, b"NaN", b"{}",
        b'{"model_a": "a", "model_b": "b", "winner": ["tie"]}', b'{"model_a": "a", "model_b": "b", "winner": {}}',
        b'{"model_a": {}, "model_b": "b", "winner": "tie"}', b'{"model_a": "a", "model_b": null, "winner": "tie"}',
        b'{"model_a": "a", "model_b": "a", "winner": "tie"}', b'{"model_b": "a", "winner": "tie"}',
    ]  # fmt: skip
    with votes.path.open("ab") as file:
        file.writelines(line + b"\n" for line in hostile)
    votes.append({**VOTE, "model_a": "\x1b[2Jc", "model_b": "\ud800", "response_a": "\udc80", "winner": "model_a"})
    assert votes.battles() == [Battle("a", "b", "tie"), Battle("\\x1b[2Jc", "?", "model_a")]
    assert votes.read()[1]["response_a"] == "\udc80"
    show_leaderboard(votes.battles())


def test_a_file_that_has_gone_is_an_error_of_the_user(tmp_path: Path) -> None:
    votes = VoteFile(tmp_path / "votes.jsonl")
    votes.path.unlink()
    with pytest.raises(DataError, match=r"votes=.*: cannot be read \(No such file or directory\)"):
        votes.battles()
