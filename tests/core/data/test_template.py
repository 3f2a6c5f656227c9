"""The shipped templates, letter by letter, and templates that cannot be used."""

import pytest
from omegaconf import OmegaConf

from instruct_lit.config.compose import CONF
from instruct_lit.core.data.example import Example
from instruct_lit.core.data.template import Template
from instruct_lit.errors import TemplateError

PREAMBLE = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
PAIRED = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request."
)


def shipped(name: str) -> Template:
    return Template(**OmegaConf.load(CONF / "template" / f"{name}.yaml"))


@pytest.mark.parametrize(
    ("name", "given", "prompt", "suffix"),
    [
        ("alpaca", "", f"{PREAMBLE}\n\n### Instruction:\nDo.\n\n### Response:\n", ""),
        ("alpaca", "x", f"{PREAMBLE}\n\n### Instruction:\nDo.\n\n### Input:\nx\n\n### Response:\n", ""),
        ("alpaca_two_preambles", "", f"{PREAMBLE}\n\n### Instruction:\nDo.\n\n### Response:\n", ""),
        ("alpaca_two_preambles", "x", f"{PAIRED}\n\n### Instruction:\nDo.\n\n### Input:\nx\n\n### Response:\n", ""),
        ("phi3", "", "<|User|>\nDo.\n\n<|Assistant|>:\n", ""),
        ("phi3", "x", "<|User|>\nDo.\nx\n\n<|Assistant|>:\n", ""),
        ("chatml", "x", "<|im_start|>user\nDo.\n\nx<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>"),
        ("plain", "", "", ""),
    ],
)
def test_shipped_templates_letter_by_letter(name: str, given: str, prompt: str, suffix: str) -> None:
    template = shipped(name)
    example = Example("Do.", "Done.", given)
    assert template.prompt(example) == prompt
    assert template.suffix(example) == suffix
    assert template.prompt(example) + template.response(example) == prompt + "Done." + suffix


TALK = Example("And?", "So.", "x", {}, "Be short.", (("Hello", "Hi!"),))


@pytest.mark.parametrize(
    ("name", "turns"),
    [
        (
            "alpaca",
            [
                ("Be short.\n\n### Instruction:\nHello\n\n### Response:\n", "Hi!"),
                ("\n\n### Instruction:\nAnd?\n\n### Input:\nx\n\n### Response:\n", "So."),
            ],
        ),
        (
            "alpaca_two_preambles",
            [
                ("Be short.\n\n### Instruction:\nHello\n\n### Response:\n", "Hi!"),
                ("\n\n### Instruction:\nAnd?\n\n### Input:\nx\n\n### Response:\n", "So."),
            ],
        ),
        (
            "phi3",
            [
                ("<|System|>\nBe short.\n\n<|User|>\nHello\n\n<|Assistant|>:\n", "Hi!"),
                ("\n\n<|User|>\nAnd?\nx\n\n<|Assistant|>:\n", "So."),
            ],
        ),
        (
            "chatml",
            [
                (
                    "<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n",
                    "Hi!<|im_end|>",
                ),
                ("\n<|im_start|>user\nAnd?\n\nx<|im_end|>\n<|im_start|>assistant\n", "So.<|im_end|>"),
            ],
        ),
    ],
)
def test_conversations_letter_by_letter(name: str, turns: list[tuple[str, str]]) -> None:
    template = shipped(name)
    assert template.turns(TALK) == turns
    single = Example("Do.", "Done.", "x")
    assert template.turns(single) == [(template.prompt(single), "Done." + template.suffix(single))]


def test_a_template_without_the_form_refuses_a_conversation() -> None:
    plain = Template("mine", "{{ instruction }}: {{ response }}")
    with pytest.raises(TemplateError, match=r"template 'mine': no template.next_turn for \(\('c', 'd'\),\); add it or"):
        plain.turns(Example("a", "b", history=(("c", "d"),)))
    with pytest.raises(TemplateError, match=r"template 'mine': no {{ system }} for 'Be short.'; add it"):
        plain.turns(Example("a", "b", system="Be short."))
    with pytest.raises(TemplateError, match=r"template 'mine': no {{ input }} for 'x'; add it"):
        plain.renderings(Example("a", "b", input="x"))
    with pytest.raises(TemplateError, match=r"template 'plain': no {{ instruction }} for 'a'; add it"):
        shipped("plain").renderings(Example("a", "b"))
    later = Template("mine", "{{ instruction }}{{ input }}{{ response }}", "{{ instruction }}{{ response }}")
    with pytest.raises(TemplateError, match=r"template 'mine.next_turn': no {{ input }} for 'x'; add it"):
        later.renderings(Example("a", "b", input="x", history=(("c", "d"),)))
    with pytest.raises(TemplateError, match=r"template 'mine.next_turn': {{ response }} occurs 0 times"):
        Template("mine", "{{ response }}", next_turn="{{ instruction }}")


def test_trap_4_text_of_a_user_is_not_rendered_again() -> None:
    template = shipped("alpaca")
    text = "{{ 7 * 7 }} {% raw %} ### Response:\n"
    assert text in template.prompt(Example(text, "x"))
    assert template.turns(Example("a", "{{ instruction }}"))[0][1].endswith("{{ instruction }}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{{ instruction }}", "{{ response }} occurs 0 times in '{{ instruction }}'; exactly one is needed"),
        ("{{ response }} {{ response }}", "{{ response }} occurs 2 times"),
        (
            "{{ instrction }}{{ response }}",
            "'instrction' is undefined; allowed variables are instruction, input, system, tools and response",
        ),
        ("{% if input %}{{ response }}{% endif %}", "must each be complete"),
        ("{{ instruction.__class__.__mro__ }}{{ response }}", "unsafe"),
        (None, "occurs 0 times in None; exactly one is needed (template.text, or template.path"),
    ],
)
def test_templates_that_cannot_be_used_say_why(text: str | None, message: str) -> None:
    with pytest.raises(TemplateError) as caught:
        Template("mine", text)
    assert message in str(caught.value)
