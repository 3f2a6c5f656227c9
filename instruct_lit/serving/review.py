"""Reading responses one by one, blind to the model that wrote them: the order, the labels of each reviewer, figures."""

import hashlib
import random
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from instruct_lit.errors import DataError
from instruct_lit.evaluation.jsonl_log import JsonlLog
from instruct_lit.evaluation.people import MATCHED, VALUES, is_label, people

MAX_NAME, MAX_TEXT = 60, 4000  # characters of a reviewer's name, and of a note


class Review:
    """The distinct responses of one or several sources, and people's labels of them, which a file keeps.

    Args:
        sources: by name the rows of a file of responses, with `scores` and perhaps the verdict of a judge.
        path: the file of labels, to which is appended.
        own_labels: labels beside those of `people.VALUES`.
        seed: of the order, which is the same for all reviewers, so that unfinished reviews overlap.
    """

    def __init__(
        self, sources: Mapping[str, Sequence[dict[str, Any]]], path: Path, own_labels: Sequence[str] = (), seed: int = 0
    ) -> None:
        self.log, self.names = JsonlLog(path, "reviews", "label"), [*VALUES, *own_labels]
        items: dict[tuple[Any, ...], dict[str, Any]] = {}
        for source, rows in sources.items():
            for row in rows:
                item = items.setdefault(_identity(row), {**row, "sources": []})
                item["sources"].append(source)
        self.items = list(items.values())
        random.Random(seed).shuffle(self.items)
        self.order = hashlib.sha256(repr([_identity(item) for item in self.items]).encode()).hexdigest()[:16]
        self.labels: list[dict[str, Mapping[str, Any]]] = [{} for _ in self.items]
        self._given: dict[str, list[int]] = {}  # places of a reviewer's labels in the order in which they were given
        places = {_identity(item): place for place, item in enumerate(self.items)}
        for record in self.log.read():
            place, label = places.get(_identity(record)), record.get("label")
            if place is not None and isinstance(record.get("reviewer"), str) and (label is None or is_label(label)):
                self._note(place, record)

    def state(self, reviewer: str) -> dict[str, Any]:
        """What a reviewer sees next: the first response that they have not labelled, without its model; or the end."""
        name = _name(reviewer)
        n_labels = len(self._given.get(name, ()))
        found = {"n_labels": n_labels, "n": len(self.items), "order": self.order, "place": None}
        place = next((i for i, given in enumerate(self.labels) if name not in given), None)
        if place is None:
            return found
        item = self.items[place]
        texts = {field: item[field] for field in ("instruction", "input", "output", "response")}
        return {**found, "place": place, **texts, "history": item.get("history") or []}

    def label(self, reviewer: str, place: int, label: str, note: str = "", order: str | None = None) -> dict[str, Any]:
        """Save a label, which is on the disk when this returns; return the next state.

        Args:
            order: of the state that `place` comes from; None does not compare it.

        Raises: DataError for an unknown response or label, a place in another order, and where the file cannot be
            written.
        """
        if order not in (None, self.order):  # a page that was open while the program was started with other responses
            raise DataError("the review was started again with other responses; reload the page")
        if type(place) is not int or not 0 <= place < len(self.items) or label not in self.names:
            raise DataError(f"place={place!r:.40}, label={label!r:.40}: no such response or label; reload the page")
        if not isinstance(note, str) or len(note) > MAX_TEXT:
            raise DataError(f"note: not a text of at most {MAX_TEXT} characters; shorten it")
        self._save(_name(reviewer), place, label, note)
        return self.state(reviewer)

    def undo(self, reviewer: str) -> dict[str, Any]:
        """Withdraw a reviewer's last label; return the state, which has that response, with `label` and `note`."""
        name = _name(reviewer)
        if not self._given.get(name):
            raise DataError("there is no label to withdraw")
        place = self._given[name][-1]
        last = self.labels[place][name]
        self._save(name, place, None, "")
        state = self.state(name)
        return {**state, "label": last["label"], "note": last.get("note", "")} if state["place"] == place else state

    def figures(self, seed: int = 0) -> dict[str, Any]:
        """The figures of `people` over all labels, and the labelled `rows`, those with different labels first."""
        rows = [
            {**item, "number": item["id"], "id": place, "labels": list(given.values())}
            for place, (item, given) in enumerate(zip(self.items, self.labels, strict=True))
            if given
        ]
        if not rows:
            return {"n_labels": 0}
        texts = {row["id"]: {label["reviewer"]: label["label"] for label in row["labels"]} for row in rows}
        found = people(rows, texts, seed)
        differ = set(found["disagreements"])
        return {
            **found,
            "disagreements": [self.items[place]["id"] for place in found["disagreements"]],
            "judged": any("judge" in row for row in rows),
            "rows": sorted(rows, key=lambda row: row["id"] not in differ),
        }

    def _save(self, reviewer: str, place: int, label: str | None, note: str) -> None:
        item = self.items[place]
        record = {
            "time": datetime.now(UTC).isoformat(timespec="seconds"), "reviewer": reviewer, "id": item["id"],
            "label": label, "note": note, "sources": item["sources"], **{field: item[field] for field in MATCHED},
        }  # fmt: skip
        self.log.append(record)
        self._note(place, record)

    def _note(self, place: int, record: Mapping[str, Any]) -> None:
        places = self._given.setdefault(record["reviewer"], [])
        if self.labels[place].pop(record["reviewer"], None) is not None:
            places.remove(place)
        if record["label"] is not None:
            self.labels[place][record["reviewer"]] = record
            places.append(place)


def _identity(record: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(str(record.get(field)) for field in ("id", *MATCHED))


def _name(reviewer: Any) -> str:
    if not isinstance(reviewer, str) or not 0 < len(reviewer.strip()) <= MAX_NAME:
        raise DataError(f"reviewer: not a name of 1 to {MAX_NAME} characters; give one")
    return reviewer.strip()
