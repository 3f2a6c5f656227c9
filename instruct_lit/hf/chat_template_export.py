"""Export of our template and GPT-2's tokenizer to transformers, where conversations get the same ids as here."""

import json
from pathlib import Path
from typing import Any

from instruct_lit.core.data.template import THOUGHTS, Template
from instruct_lit.core.data.tokenizer import EOT, GPT2Tokenizer

# A code point that Unicode excludes from text: inside a special token's name it makes it ordinary text.
GUARD = "\ufdd0"
_VOCAB = {"encoder.json": "vocab.json", "vocab.bpe": "merges.txt"}


def guarded(name: str) -> str:
    """The name of a special token with `GUARD` inside, behind its second character if a third follows."""
    place = min(2, len(name) - 1)
    return name[:place] + GUARD + name[place:]


def chat_template(template: Template, start: str = "", end: str = EOT, guards: bool = False) -> str:
    """Jinja for transformers that renders a conversation as `Template.turns` does.

    A template without `next_turn` renders the last question alone, one without a place for it no system message and no
    tools. Calls, results and thoughts are written as by `datasets.conversation_texts`.

    Args:
        start: text before the conversation.
        end: the token that closes a response. It follows every answer but the last, which is continued or learnt,
            unless the template itself ends a response with it.
        guards: whether the tokenizer splits at `GUARD` and drops it (`hf.special_tokens`). Then `end` in users' text is
            protected, and prompts and answers are encoded separately.
    """
    protect = f" | replace({_quoted(end)}, {_quoted(guarded(end))})" if guards else ""
    shown = {"keep": "", "drop": " and false", "last": " and loop.last" if template.next_turn else ""}[
        template.thoughts
    ]
    answer = _output(GUARD if guards else "") + _ANSWER.replace("SHOWN", shown).replace("PROTECT", protect)
    first, form = THOUGHTS.sub("", template.prompt_source), template.next_turn
    parts = [
        f"{_output(start)}{{% set told = messages | selectattr('role', 'equalto', 'system') | map(attribute='content')"
        f" | join('\\n\\n'){protect} %}}"
        "{% set given = namespace(tools='') %}",
        f"{_TOOLS}{{% set given.tools = given.tools{protect} %}}" if template.has_tools else "",
    ]
    if form is None:
        parts += [
            "{% set system = told %}{% set tools = given.tools %}"
            "{% set message = messages | selectattr('role', 'equalto', 'user') | list | last %}",
            f"{{% set instruction = message['content']{protect} %}}{{% set input = '' %}}" + _block(first),
            "{% if messages[-1]['role'] == 'assistant' %}{% set message = messages[-1] %}",
            answer + _block(template.suffix_source) + "{% endif %}",
        ]
    else:
        parts += [
            "{% set turn = namespace(first=true, n=0, said='') %}{% for message in messages %}",
            f"{{% if message['role'] in ['user', 'tool'] %}}{_SAID}",
            "{% if loop.last or messages[loop.index]['role'] == 'assistant' %}{% set turn.n = 0 %}",
            "{% set system = told if turn.first else '' %}{% set tools = given.tools if turn.first else '' %}",
            f"{{% set instruction = turn.said{protect} %}}{{% set input = '' %}}",
            _either(first, form.prompt_source) + "{% endif %}",
            "{% elif message['role'] == 'assistant' %}",
            answer + _either(*(_closed(f.suffix_source, end) for f in (template, form))),
            "{% set turn.first = false %}",
            "{% endif %}{% endfor %}",
        ]
    return "".join(parts)


# Jinja in one line each: the tools as JSON, what stands before an answer, an answer.
_TOOLS = (
    "{% for tool in tools or [] %}"
    r"{% set given.tools = given.tools ~ ('' if loop.first else '\n') ~ (tool | tojson) %}{% endfor %}"
)
_SAID = (
    "{% set text = message['content'] or '' %}{% if message['role'] == 'tool' %}"
    r"{% set text = '<tool_response>\n' ~ text ~ '\n</tool_response>' %}{% endif %}"
    r"{% set turn.said = turn.said ~ '\n' ~ text if turn.n else text %}{% set turn.n = turn.n + 1 %}"
)
_ANSWER = (
    "{% set answer = namespace(said=message['content'] or '') %}"
    "{% for call in message['tool_calls'] or [] %}{% set call = call['function'] %}"
    "{% set arguments = call['arguments'] if call['arguments'] is string else call['arguments'] | tojson %}"
    r"{% set answer.said = answer.said ~ ('\n' if answer.said else '') ~ '<tool_call>\n{\"name\": '"
    r" ~ (call['name'] | tojson) ~ ', \"arguments\": ' ~ arguments ~ '}\n</tool_call>' %}{% endfor %}"
    r"{% if message['reasoning_content']SHOWN %}"
    r"{% set answer.said = '<think>\n' ~ message['reasoning_content'] ~ '\n</think>\n\n' ~ answer.said %}{% endif %}"
    "{{ answer.saidPROTECT }}"
)


def write_gpt2_tokenizer(directory: Path, tokenizer: GPT2Tokenizer, context_length: int, template: Template) -> None:
    """Write the files that transformers (`AutoTokenizer` or `GPT2Tokenizer`) opens, with the chat template."""
    files = tokenizer.vocab_files()
    for name, content in files.items():
        (directory / _VOCAB[name]).write_bytes(content)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context_length,
        "model_input_names": ["input_ids", "attention_mask"],  # older versions add token_type_ids, which GPT-2 embeds
        "clean_up_tokenization_spaces": False,
        **{name: EOT for name in ("bos_token", "eos_token", "unk_token")},
        "chat_template": chat_template(template, guards=True),
    }
    definition = _definition(json.loads(files["encoder.json"]), files["vocab.bpe"].decode("utf-8"), tokenizer.eot_id)
    for name, facts in (("tokenizer_config.json", config), ("tokenizer.json", definition)):
        (directory / name).write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _definition(vocab: dict[str, int], merges: str, eot_id: int) -> dict[str, Any]:
    """The content of GPT-2's `tokenizer.json`, which first splits at `GUARD` and drops it."""
    bytes_ = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    cut = {"type": "Split", "pattern": {"String": GUARD}, "behavior": "Removed", "invert": False}
    return {
        **{"version": "1.0", "truncation": None, "padding": None},
        "added_tokens": [{"id": eot_id, "content": EOT, **plain, "special": True}],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [cut, bytes_]},
        "post_processor": bytes_,
        "decoder": bytes_,
        "model": {
            "type": "BPE",
            **{"dropout": None, "unk_token": None, "continuing_subword_prefix": "", "end_of_word_suffix": ""},
            **{"fuse_unk": False, "byte_fallback": False},
            "vocab": vocab,
            "merges": [line for line in merges.splitlines() if line and not line.startswith("#version")],
        },
    }


def _either(first: str, later: str) -> str:
    return f"{{% if turn.first %}}{_block(first)}{{% else %}}{_block(later)}{{% endif %}}"


def _block(source: str) -> str:
    """The same Jinja, independent of the text around it.

    The line break after the opening tag is trimmed, so the source begins a line as in a template of ours; the empty
    expression keeps transformers from trimming a line break at the end.
    """
    return "{% if true %}\n" + source + "{{ '' }}{% endif %}"


def _closed(suffix: str, end: str) -> str:
    return suffix if suffix.endswith(end) else suffix + f"{{% if not loop.last %}}{_output(end)}{{% endif %}}"


def _output(text: str) -> str:
    return f"{{{{ {_quoted(text)} }}}}" if text else ""


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
