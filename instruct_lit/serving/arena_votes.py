"""The arena's votes on disk."""

from pathlib import Path
from typing import Any

from instruct_lit.evaluation.jsonl_log import JsonlLog
from instruct_lit.evaluation.ratings import WINNERS, Battle, model_name


class VoteFile(JsonlLog):
    """A file of votes."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "votes", "vote")

    def read(self) -> list[dict[str, Any]]:
        """All votes between two models; other lines are skipped."""
        return [vote for vote in super().read() if _is_vote(vote)]

    def battles(self) -> list[Battle]:
        """The votes as battles, in the order in which they were cast."""
        return [
            Battle(model_name(vote["model_a"]), model_name(vote["model_b"]), vote["winner"]) for vote in self.read()
        ]


def _is_vote(vote: dict[str, Any]) -> bool:
    a, b, winner = (vote.get(field) for field in ("model_a", "model_b", "winner"))
    return isinstance(a, str) and isinstance(b, str) and a != b and isinstance(winner, str) and winner in WINNERS
