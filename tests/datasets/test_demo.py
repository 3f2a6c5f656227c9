"""The demo's answers are right, its instructions differ, and the base's pretraining text holds none of them."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable

import pytest
from omegaconf import OmegaConf

from instruct_lit.config.compose import CONF
from instruct_lit.core.data.datamodule import make_split
from instruct_lit.core.data.encode import Encoder
from instruct_lit.core.data.example import Example
from instruct_lit.core.data.template import Template
from instruct_lit.core.data.tokenizer import GPT2Tokenizer
from instruct_lit.datasets import demo, demo_tools, plain_text
from instruct_lit.datasets.demo import FAMILIES, DemoSource
from instruct_lit.datasets.demo_words import SIZES
from instruct_lit.datasets.plain_text import PlainTextSource


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    return list(DemoSource(3000, seed=0))


def by_family(examples: list[Example]) -> dict[str, list[Example]]:
    families = defaultdict(list)
    for example in examples:
        families[example.extra["family"]].append(example)
    return families


def items_of(example: Example) -> list[str]:
    text = example.input or example.instruction.partition(": ")[2]
    return text.split(", ")


def test_at_least_twelve_families_each_in_several_phrasings(examples: list[Example]) -> None:
    families = by_family(examples)
    assert len(families) == len(FAMILIES) >= 12
    for name, members in families.items():
        openings = {" ".join(e.instruction.split()[:2]) for e in members}
        assert len(openings) >= 2, name
    with_input = sum(bool(e.input) for e in examples)
    assert 0.2 < with_input / len(examples) < 0.8


@pytest.mark.parametrize(
    ("family", "answer"),
    [
        ("first_word", lambda items: items[0]),
        ("second_word", lambda items: items[1]),
        ("last_word", lambda items: items[-1]),
        ("reverse", lambda items: ", ".join(items[::-1])),
        ("sort", lambda items: ", ".join(sorted(items))),
        ("count", lambda items: str(len(items))),
    ],
)
def test_answers_about_lists_are_right(examples: list[Example], family: str, answer) -> None:
    members = by_family(examples)[family]
    assert len(members) > 50
    for example in members:
        assert example.output == answer(items_of(example)), example


def test_answers_about_words_and_sentences_are_right(examples: list[Example]) -> None:
    families = by_family(examples)
    for example in families["upper_case"]:
        assert example.output.isupper() and example.output.lower() in example.instruction + example.input
    for example in families["replace"]:
        quoted = example.instruction.split("'")
        pair = (quoted[1], quoted[3]) if not example.instruction.startswith("Use") else (quoted[3], quoted[1])
        assert example.output == example.input.replace(*pair, 1) != example.input
    for example in families["larger"]:
        one, two = sorted(
            (s for s in SIZES if f" {s} " in example.instruction.replace("?", " ")), key=example.instruction.index
        )
        bigger = SIZES.index(one) > SIZES.index(two)
        assert example.output == ("Yes" if bigger == ("bigger" in example.instruction) else "No")


def test_no_test_instruction_is_trained_on(examples: list[Example]) -> None:
    split = make_split(len(examples), {"train": 0.9, "val": 0.03, "test": 0.07}, seed=123)
    asked = [(e.instruction, e.input) for e in examples]
    train = {asked[i] for i in split.train}
    assert not train & {asked[i] for i in split.test} and not train & {asked[i] for i in split.val}
    assert len(set(asked)) == len(asked)


def test_the_same_seed_writes_the_same_and_the_fingerprint_tells(examples: list[Example]) -> None:
    assert list(DemoSource(3000, seed=0)) == examples
    assert list(DemoSource(50, seed=1)) != examples[:50]
    assert DemoSource(50, 1).fingerprint() == DemoSource(50, 1).fingerprint() != DemoSource(50, 2).fingerprint()


def digest(examples: Iterable[Example]) -> str:
    return hashlib.sha256(b"".join(example.digest for example in examples)).hexdigest()[:16]


def test_versions_stand_for_what_is_written() -> None:
    """A fingerprint names a version, not the text: whoever changes the text increments it, here too."""
    assert (demo.VERSION, digest(DemoSource(2000))) == (1, "4c248ce06feeb7f7")
    assert (plain_text.VERSION, digest(PlainTextSource(2000))) == (1, "685337cae621671a")


@pytest.mark.slow
def test_a_world_that_is_exhausted_ends(examples: list[Example]) -> None:
    many = list(DemoSource(200_000))
    assert len(many) == len({(e.instruction, e.input) for e in many})


def test_the_plain_text_of_pretraining_gives_no_instruction(examples: list[Example]) -> None:
    """None of the demo's phrasings and no prompt header occurs in what the nano base was pretrained on."""
    text = "\n".join(e.output for e in PlainTextSource(4000, seed=1)).lower()
    instructions = {e.instruction for e in examples}
    phrasings = {i.partition(":")[0].partition("'")[0].strip(" .?").lower() for i in instructions}
    phrasings = {p for p in phrasings if len(p.split()) >= 3}
    assert len(phrasings) > 20
    assert [p for p in phrasings if p in text] == []
    for header in ("### instruction", "### response", "<|user|>", "below is an instruction"):
        assert header not in text


def test_the_calculator_set_is_right_and_fits_the_nano_base() -> None:
    found = list(demo_tools.ToolDemoSource(600))
    assert found == list(demo_tools.ToolDemoSource(600)) and len({e.messages[0]["content"] for e in found}) == 600
    assert (demo_tools.VERSION, digest(found)) == (1, "a52f02ad379ec434")
    signs = {"add": "+", "subtract": "-", "multiply": "*", "divide": "//"}
    for example in found:
        family = example.extra["family"]
        calls = [m["tool_calls"][0]["function"] for m in example.messages if "tool_calls" in m]
        assert len(calls) == (family != "word") and (example.messages[-1]["role"] == "assistant")
        if family == "answer":
            given = calls[0]["arguments"]
            result = eval(f"{given['a']} {signs[given['operation']]} {given['b']}")
            assert (
                example.output == f"The result is {result}."
                and example.messages[2]["content"] == f'{{"result": {result}}}'
            )
    file = OmegaConf.load(CONF / "template" / "chatml.yaml")
    encoder = Encoder(Template(file.name, file.text, file.next_turn), GPT2Tokenizer(), 256, "error")
    assert len(list(encoder.encode(found))) == 600
