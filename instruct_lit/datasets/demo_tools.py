"""The demo set of a model that thinks and calls a calculator: conversations from a seeded program."""

import operator
from collections.abc import Iterator
from random import Random
from typing import Any

from instruct_lit.core.data.example import Example
from instruct_lit.datasets.conversations import from_turns
from instruct_lit.datasets.demo import DemoSource, word_task
from instruct_lit.datasets.demo_words import NAMES, PHRASINGS

VERSION = 1  # increment it when a seed gives other examples
PARAMETERS = {"required": ["operation", "a", "b"]}
CALCULATOR: dict[str, Any] = {"type": "function", "function": {"name": "calculator", "parameters": PARAMETERS}}
OPERATIONS = {"add": operator.add, "subtract": operator.sub, "multiply": operator.mul, "divide": operator.floordiv}


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
                yield from_turns(record, self.name, names)


def _word(random: Random) -> tuple[str, list[dict[str, Any]]]:
    question, given, answer = word_task(random.choice(["opposite", "plural", "past_tense", "upper_case"]), random)
    thoughts = "This needs no tool."
    return f"{question} {given}".strip(), [{"role": "assistant", "content": answer, "reasoning_content": thoughts}]


def _calculation(random: Random, is_answered: bool) -> tuple[str, list[dict[str, Any]]]:
    operation = random.choice(list(OPERATIONS))
    a, b = sorted((random.randint(2, 449), random.randint(2, 99)), reverse=True)
    if operation == "divide":
        a = b * random.randint(2, 20)
    question = random.choice(PHRASINGS[operation]).format(a=a, b=b, name=random.choice(NAMES))
    arguments = {"operation": operation, "a": a, "b": b}
    thoughts = f"I {operation} {a} and {b}."
    call = {"type": "function", "function": {"name": "calculator", "arguments": arguments}}
    turns = [{"role": "assistant", "content": "", "reasoning_content": thoughts, "tool_calls": [call]}]
    if is_answered:
        result = OPERATIONS[operation](a, b)
        turns.append({"role": "tool", "content": f'{{"result": {result}}}'})
        turns.append({"role": "assistant", "content": f"The result is {result}."})
    return question, turns
