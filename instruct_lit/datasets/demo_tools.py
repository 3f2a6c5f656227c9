"""The demo set of a model that thinks and calls a calculator: conversations from a seeded program."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random
from typing import Any

from instruct_lit.core.data.example import Example
from instruct_lit.datasets.conversations import from_turns
from instruct_lit.datasets.demo import DemoSource, word_task
from instruct_lit.datasets.demo_words import NAMES

VERSION = 1  # increment it when a seed gives other examples
PARAMETERS = {"required": ["operation", "a", "b"]}
CALCULATOR: dict[str, Any] = {"type": "function", "function": {"name": "calculator", "parameters": PARAMETERS}}
# By name: the calculation, and questions about it.
OPERATIONS: dict[str, tuple[Callable[[int, int], int], list[str]]] = {
    "add": (
        lambda a, b: a + b,
        ["What is {a} plus {b}?", "Add {b} to {a}.", "{name} has {a} coins and finds {b}. How many?"],
    ),
    "subtract": (
        lambda a, b: a - b,
        ["What is {a} minus {b}?", "Subtract {b} from {a}.", "{name} has {a} coins and spends {b}. How many?"],
    ),
    "multiply": (
        lambda a, b: a * b,
        ["What is {a} times {b}?", "Multiply {a} by {b}.", "A coat costs {a}. How much for {b}?"],
    ),
    "divide": (
        lambda a, b: a // b,
        ["What is {a} divided by {b}?", "Divide {a} by {b}.", "{name} shares {a} coins with {b}. Each?"],
    ),
}  # fmt: skip


class ToolDemoSource(DemoSource):
    """`n_examples` different conversations with a calculator as tool, the same for the same seed.

    The field `family` says what the last turn is: a `call`, the `answer` to its result, or a `word` task, for which no
    tool is needed. Calls and answers are about different numbers.
    """

    kind = f"demo_tools {VERSION}"

    def __iter__(self) -> Iterator[Example]:
        random, seen = Random(self.seed), set[str]()
        while len(seen) < self.n_examples:
            family = ("call", "answer", "call", "answer", "word")[len(seen) % 5]
            question, turns = _word(random) if family == "word" else _calculation(random, family == "answer")
            if question not in seen:
                seen.add(question)
                messages = [{"role": "user", "content": question}, *turns]
                record = {"messages": messages, "tools": [CALCULATOR], "family": family}
                names = {"messages": "messages", "system": "system"}
                yield from_turns(record, self.name, names, "messages", "role", "content")


def _word(random: Random) -> tuple[str, list[dict[str, Any]]]:
    question, given, answer = word_task(random.choice(["opposite", "plural", "past_tense", "upper_case"]), random)
    thoughts = "This needs no tool."
    return f"{question} {given}".strip(), [{"role": "assistant", "content": answer, "reasoning_content": thoughts}]


def _calculation(random: Random, is_answered: bool) -> tuple[str, list[dict[str, Any]]]:
    operation = random.choice(list(OPERATIONS))
    function, phrasings = OPERATIONS[operation]
    a, b = sorted((random.randint(2, 449), random.randint(2, 99)), reverse=True)
    if operation == "divide":
        a = b * random.randint(2, 20)
    question = random.choice(phrasings).format(a=a, b=b, name=random.choice(NAMES))
    arguments = {"operation": operation, "a": a, "b": b}
    thoughts = f"I {operation} {a} and {b}."
    call = {"type": "function", "function": {"name": "calculator", "arguments": arguments}}
    turns = [{"role": "assistant", "content": "", "reasoning_content": thoughts, "tool_calls": [call]}]
    if is_answered:
        turns.append({"role": "tool", "content": f'{{"result": {function(a, b)}}}'})
        turns.append({"role": "assistant", "content": f"The result is {function(a, b)}."})
    return question, turns
