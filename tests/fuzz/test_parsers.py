"""Whatever a file contains, its reader gives a value or an InstructLitError: no other exception, no hang.

The default run tries a few hundred inputs for each reader; `FUZZ_EXAMPLES=20000 python -m pytest tests/fuzz` tries more.
"""

import json
import os
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from instruct_lit.core.bundle import OURS, read_about
from instruct_lit.core.data.datamodule import make_split
from instruct_lit.core.data.example import Example, to_example
from instruct_lit.core.data.records import read_records
from instruct_lit.core.data.template import Template
from instruct_lit.core.model.pretrained import load_gpt
from instruct_lit.errors import InstructLitError
from instruct_lit.evaluation.answer_files import read_responses
from instruct_lit.evaluation.judging.agreement import read_scores
from instruct_lit.evaluation.judging.prompt import Choice, Score, texts_of
from instruct_lit.evaluation.leaks import question
from instruct_lit.evaluation.metrics import WITHOUT_EXTRA
from instruct_lit.evaluation.ratings import read_battles

many = settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "150")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
KEYS = (
    "instruction input output system history conversations messages role from value content user human gpt a b".split()
)
leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from(KEYS)
values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=5), inner, max_size=5)
    ),
    max_leaves=15,
)
# JSON that was cut, joined or scribbled upon: nearer to a real accident than random bytes.
damaged = st.builds(
    lambda text, cut, noise: text[:cut].encode("utf-8", "surrogatepass") + noise,
    st.lists(values, max_size=3).map(lambda v: json.dumps(v)) | values.map(lambda v: json.dumps(v)),
    st.integers(0, 200),
    st.binary(max_size=12),
)
contents = damaged | st.binary(max_size=60)


def write(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def works_or_says(action: Any) -> None:
    try:
        action()
    except InstructLitError as error:
        said = str(error).strip()
    else:
        return
    assert said, "an error without a message"


@many
@given(values, st.sampled_from(["auto", "alpaca", "sharegpt", "messages"]))
def test_records(record: Any, form: Any) -> None:
    works_or_says(lambda: to_example(record, "f.json record 1", None, form))


@many
@given(contents, st.sampled_from(["json", "jsonl", "csv"]))
def test_data_files(tmp_path: Path, content: bytes, kind: str) -> None:
    path = write(tmp_path, f"records.{kind}", content)
    works_or_says(lambda: list(read_records(path)))


@many
@given(
    st.lists(st.sampled_from(["{{ response }}", "{{ instruction }}", "{% if input %}", "{% endif %}", "{{", "}}", "{%", "{{ x }}",
                              "{{ ''.__class__.__mro__ }}", "{% for i in range(9) %}", "{% endfor %}", "\n", "### "]) | st.text(max_size=8))
)  # fmt: skip
def test_templates(pieces: list[str]) -> None:
    def action() -> None:
        template = Template("fuzzed", "".join(pieces))
        template.prompt(Example("i {{ 7 * 7 }}", "o", ""))

    works_or_says(action)


@many
@given(contents)
def test_what_a_bundle_says_of_itself(tmp_path: Path, content: bytes) -> None:
    write(tmp_path, OURS, content)
    works_or_says(lambda: read_about(tmp_path))


@many
@given(contents, contents)
def test_model_directories(tmp_path: Path, config: bytes, weights: bytes) -> None:
    write(tmp_path, "config.json", config)
    write(tmp_path, "model.safetensors", weights)
    works_or_says(lambda: load_gpt(path=tmp_path))


@many
@given(st.text(max_size=60) | contents.map(lambda b: b.decode("utf-8", "replace")))
def test_answers_of_a_judge(reply: str) -> None:
    assert Score().read(reply) is None or 0 <= Score().read(reply) <= 100  # type: ignore[operator]
    Choice().read(reply)


@many
@given(contents)
def test_files_of_answers_and_battles(tmp_path: Path, content: bytes) -> None:
    answers = write(tmp_path, "answers.jsonl", content)
    works_or_says(lambda: read_battles(answers))
    works_or_says(lambda: read_scores(answers, 1, "judge.path", 0, 100))

    def scored() -> None:
        for row in read_responses(answers, "output"):
            assert all(isinstance(metric(row), float) for metric in WITHOUT_EXTRA.values())
            assert isinstance(question(row) + "".join(texts_of(row).values()), str)

    works_or_says(scored)


@many
@given(
    st.integers(0, 50),
    st.dictionaries(st.sampled_from(["train", "val", "test", "x"]), st.floats() | st.integers()),
    st.integers(0, 9),
)
def test_splits(n_examples: int, spec: dict, seed: int) -> None:
    def action() -> None:
        split = make_split(n_examples, spec, seed)
        parts = [*split.train.tolist(), *split.val.tolist(), *split.test.tolist()]
        assert len(parts) == len(set(parts)) and set(parts) <= set(range(n_examples))

    works_or_says(action)
