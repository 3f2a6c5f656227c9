"""Limits on the time and memory of a template, which may be a stranger's: work is counted while it is rendered."""

import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, wraps
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError

from instruct_lit.core.jinja_environments import TEXT_OPTIONS, text_environment

MAX_WORK = 1_000_000  # of one rendering: loop iterations, calls, and every 100 characters that an operation makes
MAX_SIZE = 40_000_000  # characters or elements of one value
MAX_BITS = 10_000  # of a whole number
MAX_WIDTH = 10_000  # that a text is padded or indented to
MAX_NAMES = 100  # in a template without counting
_HARMLESS = (
    nodes.Output, nodes.TemplateData, nodes.Name, nodes.Const, nodes.If, nodes.CondExpr, nodes.Compare, nodes.Operand,
    nodes.Test, nodes.Not, nodes.And, nodes.Or,
)  # fmt: skip
_WIDTH = re.compile(r"\d{5,}|\*|\{[^{}]*\{")  # in a format: a large width, or one that is an argument
_SLOW = ("title", "wordwrap", "striptags")  # filters that take long for each character
_left = threading.local()


def _spend(size: int, work: int = 1) -> None:
    """Count work of the rendering in this thread. Raises: SecurityError for too much of it, or a value too large."""
    _left.work = getattr(_left, "work", MAX_WORK) - work - size // 100
    if size > MAX_SIZE or _left.work < 0:
        raise SecurityError("it takes too much time or memory (see its loops, macros and repetitions)")


def _size(value: Any) -> int:
    return len(value) if isinstance(value, str | bytes | list | tuple | dict) else 1


def _counted(items: Iterable[Any]) -> Iterator[Any]:
    """The items of a loop, each counted."""
    for item in items:
        _spend(1)
        yield item


def _joined(parts: Iterable[Any]) -> str:
    """The parts as one text, its size checked before it is made."""
    texts = [str(part) for part in parts]
    _spend(sum(map(len, texts)), len(texts))
    return "".join(texts)


def _check_format(text: str, *given: Any) -> None:
    """Refuse a format whose result is much larger than the format and its arguments."""
    if _WIDTH.search(text):
        raise SecurityError("a format with a width that is large or an argument")
    inner = [
        x for value in given for x in (value.values() if isinstance(value, dict) else value if _size(value) > 1 else ())
    ]
    _spend(len(text) + (text.count("%") + text.count("{")) * max(map(_size, [*given, *inner]), default=1))


def _check_call(name: str, given: Sequence[Any]) -> None:
    """Refuse a filter or a method of text, by name, whose result would be huge."""
    texts = [value for value in given if isinstance(value, str)]
    items = next((value for value in given if isinstance(value, list | tuple)), ())
    _spend(sum(map(_size, given)), 10 + sum(map(_size, given)) // (2 if name in _SLOW else 20))
    if name == "translate" or (name == "sum" and not all(isinstance(value, int | float) for value in items)):
        raise SecurityError(f"{name} of anything but numbers")
    if any(type(value) is int and value > MAX_WIDTH for value in given) and name not in ("int", "float", "abs"):
        raise SecurityError(f"{name} with a number above {MAX_WIDTH}")
    if name == "format" and texts:
        _check_format(texts[0], *given)
    elif name == "replace" and len(texts) > 2:
        _spend(len(texts[0]) * max(map(len, texts[2:])) // max(1, len(texts[1])))
    elif name == "join":
        _spend(sum(map(_size, items)) + sum(map(len, texts[:1])) * (len(items) or sum(map(len, texts[-1:]))))


def _checked(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """A filter with limits on what it may be given, and on what it makes."""

    @wraps(function)  # with jinja's marks of functions that get the environment
    def limited(*args: Any, **options: Any) -> Any:
        _check_call(name, [*args, *options.values()])
        return function(*args, **options)

    return limited


class _Template(jinja2.Template):
    """A template with a budget of work for each rendering."""

    def render(self, *args: Any, **variables: Any) -> str:
        _left.work = MAX_WORK
        return super().render(*args, **variables)


class LimitedEnvironment(ImmutableSandboxedEnvironment):
    """A sandbox that limits time and memory too: work is counted, and large values are refused before they are made."""

    intercepted_binops = frozenset(["*", "**", "+", "%"])
    template_class = _Template
    concat = staticmethod(_joined)  # type: ignore[assignment]

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        del self.globals["lipsum"], self.filters["urlize"]
        self.filters = {name: _checked(function, name) for name, function in self.filters.items()}
        self.filters |= {"counted items": _counted, "joined texts": _joined}

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        template = super()._parse(source, name, filename)
        for loop in template.find_all(nodes.For):
            loop.iter = self._filtered(loop.iter, "counted items")
        for node in list(template.find_all(nodes.Node)):
            for field, value in node.iter_fields():
                if isinstance(value, list):
                    value[:] = map(self._limited_concat, value)
                else:
                    setattr(node, field, self._limited_concat(value))
        return template.set_environment(self)  # type: ignore[return-value]

    def _limited_concat(self, node: Any) -> Any:
        if not isinstance(node, nodes.Concat):
            return node
        return self._filtered(nodes.List(node.nodes, lineno=node.lineno), "joined texts")

    @staticmethod
    def _filtered(node: Any, name: str) -> nodes.Filter:
        return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        whole = isinstance(left, int) and isinstance(right, int)
        if operator == "%":
            if isinstance(left, str):
                _check_format(left, right)
        elif operator == "+":
            _spend(_size(left) + _size(right))
        elif whole:
            bits = left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length()
            if bits > MAX_BITS:
                raise SecurityError(f"a number of more than {MAX_BITS} bits")
        else:
            n = next((value for value in (left, right) if isinstance(value, int)), 1)
            _spend(max(_size(left), _size(right)) * max(n, 0))
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Any, __obj: Any, *args: Any, **options: Any) -> Any:
        _spend(1, 20)
        if isinstance(getattr(__obj, "__self__", None), str):
            _check_call(__obj.__name__, [__obj.__self__, *args, *options.values()])
        return super().call(__context, __obj, *args, **options)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None

        def limited(*args: Any, **options: Any) -> str:
            _check_format(value.__self__, *args, *options.values())
            return wrapped(*args, **options)

        return limited

    def from_string(self, source: Any, *args: Any, **options: Any) -> jinja2.Template:
        _left.work = MAX_WORK  # constants are computed while a template is compiled
        return super().from_string(source, *args, **options)


def limited_environment(source: str) -> LimitedEnvironment | None:
    """The environment with limits; None for a template that only inserts variables, at most `MAX_NAMES`, by conditions.

    Such a template cannot take long, and is rendered without the overhead of counting.
    """
    parts = list(text_environment().parse(source).find_all(nodes.Node))
    n_names = sum(isinstance(node, nodes.Name) for node in parts)
    return None if n_names <= MAX_NAMES and all(isinstance(node, _HARMLESS) for node in parts) else _environment()


@cache
def _environment() -> LimitedEnvironment:
    return LimitedEnvironment(**TEXT_OPTIONS)
