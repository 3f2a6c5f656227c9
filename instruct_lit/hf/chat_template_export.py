"""Export of our template and GPT-2's tokenizer to transformers, where conversations get the same ids as here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from instruct_lit.core.data.template import Template
from instruct_lit.core.data.tokenizer import EOT, GPT2Tokenizer

GUARD = (
    "\ufdd0"  # a code point that Unicode excludes from text: inside a special token's name it makes it ordinary text
)
_VOCAB = {"encoder.json": "vocab.json", "vocab.bpe": "merges.txt"}


def guarded(name: str) -> str:
    """The name of a special token with `GUARD` inside, behind its second character if a third follows."""
    place = min(2, len(name) - 1)
    return name[:place] + GUARD + name[place:]


def chat_template(template: Template, start: str = "", end: str = EOT, guards: bool = False) -> str:
    """Jinja for transformers that renders a conversation as `Template.turns` does.

    A template without `next_turn` renders the last question alone, one without a place for it no system message.

    Args:
        start: text before the conversation.
        end: the token that closes a response. It follows every answer but the last, which is continued or learnt.
        guards: whether the tokenizer splits at `GUARD` and drops it (`hf.special_tokens`). Then `end` in users' text is
            protected, and prompts and answers are encoded separately.
    """
    protect = f" | replace({_quoted(end)}, {_quoted(guarded(end))})" if guards else ""
    set_prompt = f"{{% set instruction = message['content']{protect} %}}{{% set input = '' %}}"
    answer = f"{_output(GUARD if guards else '')}{{{{ message['content']{protect} }}}}"
    parts = [
        f"{_output(start)}{{% set told = messages | selectattr('role', 'equalto', 'system') | map(attribute='content')"
        f" | join('\\n\\n'){protect} %}}"
    ]
    form = template.next_turn
    if form is None:
        parts += [
            "{% set system = told %}{% set message = messages | selectattr('role', 'equalto', 'user') | list | last %}",
            set_prompt + _block(template.prompt_source),
            "{% if messages[-1]['role'] == 'assistant' %}{% set message = messages[-1] %}",
            answer + _block(template.suffix_source) + "{% endif %}",
        ]
    else:
        parts += [
            "{% set turn = namespace(first=true) %}{% for message in messages %}",
            "{% if message['role'] == 'user' %}{% set system = told if turn.first else '' %}",
            set_prompt + _either(template.prompt_source, form.prompt_source),
            "{% elif message['role'] == 'assistant' %}",
            answer + _either(template.suffix_source, form.suffix_source),
            f"{{% if not loop.last %}}{_output(end)}{{% endif %}}{{% set turn.first = false %}}",
            "{% endif %}{% endfor %}",
        ]
    return "".join(parts)


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


def _output(text: str) -> str:
    return f"{{{{ {_quoted(text)} }}}}" if text else ""


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
