"""What a template may compute: no hang and no flood of memory, whoever wrote it."""

import tracemalloc

import pytest

from instruct_lit.core.data.example import Example
from instruct_lit.core.data.template import Template
from instruct_lit.errors import TemplateError
from instruct_lit.hf.template_limits import limited_environment

WORK = "it takes too much time or memory (see its loops, macros and repetitions)"
GROWING = "{% set ns = namespace(x='aaaa') %}{% for a in range(60) %}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{{ "{x}".format() }}', "KeyError: 'x'"),
        ('{{ "{}".format() }}', "IndexError"),
        ('{{ "{:>1000000000}".format(1) }}', "a format with a width"),
        ('{{ "{:{}}".format(1, 99999) }}', "a format with a width"),
        ("{{ '%1000000000d' % 1 }}", "a format with a width"),
        ("{{ '%*d' % (1000000000, 1) }}", "a format with a width"),
        ("{{ '%1000000000d'|format(1) }}", "a format with a width"),
        ("{% set x = 'a' * 1000000 %}{{ ('%(x)s' * 10000) % {'x': x} }}", WORK),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "it calls itself too often"),
        ("{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}", WORK),
        ("{% for a in [1] recursive %}{{ loop([1]) }}{% endfor %}", "it calls itself too often"),
        ("{{ 'a' * 10**10 }}", WORK),
        ("{{ 1000000000 * 'a' }}", WORK),
        ("{{ ([0] * 10**9)|length }}", WORK),
        ("{{ 10 ** (10 ** 10) }}", "a number of more than 10000 bits"),
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", WORK),
        ("{% set x = 'x' * 100000 %}{% for a in x %}{% for b in x %}{% endfor %}{% endfor %}", WORK),
        (GROWING + "{% set ns.x = ns.x ~ ns.x %}{% endfor %}", WORK),
        (GROWING + "{% set ns.x = ns.x + ns.x %}{% endfor %}", WORK),
        (GROWING + "{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}{% endfor %}", WORK),
        ("{% set x = 'a' * 10000000 %}{% for a in range(1000) %}{{ x }}{% endfor %}", WORK),
        ("{{ 'a'|center(1000000000) }}", "center with a number above 10000"),
        ("{{ 'a'.zfill(10**9) }}", "zfill with a number above 10000"),
        ("{{ ['a']|map('center', 1000000000)|list }}", "with a number above 10000"),
        ("{% set x = 'a' * 1000000 %}{{ x.replace('a', x) }}", WORK),
        ("{% set x = 'a' * 1000000 %}{{ x|replace('a', x) }}", WORK),
        ("{% set x = 'a' * 1000000 %}{{ ([x] * 1000)|join }}", WORK),
        ("{% set x = 'a' * 1000000 %}{{ x.join('b' * 1000000) }}", WORK),
        ("{{ 'a'.translate({97: 'b'}) }}", "translate of anything but numbers"),
        ("{{ [[0], [1]]|sum(start=[]) }}", "sum of anything but numbers"),
        ("{{ lipsum(n=100000) }}", "'lipsum' is undefined"),
        ("{% for a in [1] %}" * 30 + "{% endfor %}" * 30, "nested too deeply (SyntaxError)"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "nested too deeply (RecursionError)"),
        ("{% include 'x' %}", "no loader for this environment"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
    ],
)
def test_a_hostile_template_is_a_message_and_no_hang(text: str, message: str) -> None:
    with pytest.raises(TemplateError) as caught:
        Template("mine", text + "{{ response }}")
    assert message in str(caught.value)


def test_what_is_refused_is_not_made_first() -> None:
    tracemalloc.start()
    for text in ("'a' * 10**10", "[0] * 10**9", "(['a' * 1000000] * 100000)|join", "'{:>1000000000}'.format(1)"):
        with pytest.raises(TemplateError):
            Template("mine", f"{{{{ {text} }}}}{{{{ response }}}}")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6


@pytest.mark.parametrize(
    ("text", "rendered"),
    [
        ("{{ instruction|trim }}{% if input %} {{ input }}{% endif %}", "instruction input"),
        ("{{ '%s: %s' % (instruction, input) }}", "instruction: input"),
        ("{{ '{}-{:>8}'.format(instruction, input) }}", "instruction-   input"),
        ("{{ instruction ~ '-' ~ input ~ 3 }}", "instruction-input3"),
        ("{{ 'yes' if (input ~ 'x') == 'inputx' else 'no' }}{{ (input ~ 'x')|length }}", "yes6"),
        ("{% for w in ['a', 'b'] %}{{ loop.index }}/{{ loop.length }}{{ w }}{{ '' if loop.last else ',' }}{% endfor %}",
         "1/2a,2/2b"),
        ("{% for a in [1, 2] %}{% for b in [3, 4] if b > 3 %}{{ a }}{{ b }}{% endfor %}{% endfor %}", "1424"),
        ("{% macro f(x) %}[{{ x }}]{% endmacro %}{{ f(input) ~ f('b') }}", "[input][b]"),
        ("{{ ['a', input]|join(', ') }}{{ input.replace('i', 'o') }}{{ input|replace('i', 'o')|upper }}",
         "a, inputonputONPUT"),
        ("{{ input * 2 }}{{ 2 ** 10 }}{{ [1, 2]|sum }}", "inputinput10243"),
    ],
)  # fmt: skip
def test_what_a_template_may_do_is_what_jinja_does(text: str, rendered: str) -> None:
    assert Template("mine", text + "{{ response }}").prompt(Example("instruction", "o", "input")) == rendered


@pytest.mark.parametrize(
    ("text", "is_limited"),
    [
        ("Q: {{ instruction }}{% if input %} ({{ input }}){% endif %}\nA: ", False),
        ("{{ system if system else 'none' }}{% if not (a and b) or c is defined or d == 'e' %}f{% endif %}", False),
        ("{{ instruction }}" * 101, True),
        ("{% set x = 'a' %}", True),
        ("{{ a ~ b }}", True),
        ("{{ a.b }}{{ a[0] }}", True),
        ("{{ a|trim }}", True),
        ("{{ a() }}", True),
        ("{% block x %}{% endblock %}", True),
    ],
)
def test_only_a_template_that_inserts_variables_is_rendered_without_counting(text: str, is_limited: bool) -> None:
    assert (limited_environment(text) is not None) == is_limited
