"""GPT-2's tokenizer and our template as transformers opens them: conversations get the ids that they have here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from instruct_lit.core.data.template import Template
from instruct_lit.core.data.tokenizer import EOT, GPT2Tokenizer

# Cuts text for the exported tokenizer, which drops it: what stands on its two sides is encoded apart. A code point that
# Unicode keeps out of texts.
CUT = "\ufdd0"
_VOCAB = {"encoder.json": "vocab.json", "vocab.bpe": "merges.txt"}


def chat_template(template: Template, start: str = "", end: str = EOT, cut: str = "") -> str:
    """Jinja for transformers that renders a conversation as `Template.turns` does, `start` before it.

    `end`, the token that closes a response, stands behind every answer but one that comes last (to be continued, or
    learnt). A template without a form for further turns shows the last question alone. A system message stands where
    the template has a place for it. With `cut` (for a tokenizer that cuts there) prompts and answers are encoded apart,
    and no `end` comes out of a user's text.
    """
    safe = f" | replace({_quoted(end)}, {_quoted(end[:2] + cut + end[2:])})" if cut else ""
    ask = f"{{% set instruction = message['content']{safe} %}}{{% set input = '' %}}"
    answer = f"{_shown(cut)}{{{{ message['content']{safe} }}}}"
    told = (
        f"{_shown(start)}{{% set told = messages | selectattr('role', 'equalto', 'system') | map(attribute='content')"
        f" | join('\\n\\n'){safe} %}}"
    )
    form = template.next_turn
    if form is None:
        return (
            told
            + "{% set system = told %}"
            + "{% set message = messages | selectattr('role', 'equalto', 'user') | list | last %}"
            + ask
            + _block(template.prompt_source)
            + "{% if messages[-1]['role'] == 'assistant' %}{% set message = messages[-1] %}"
            + answer
            + _block(template.suffix_source)
            + "{% endif %}"
        )
    return (
        told
        + "{% set turn = namespace(first=true) %}{% for message in messages %}"
        + "{% if message['role'] == 'user' %}{% set system = told if turn.first else '' %}"
        + ask
        + _either(template.prompt_source, form.prompt_source)
        + "{% elif message['role'] == 'assistant' %}"
        + answer
        + _either(template.suffix_source, form.suffix_source)
        + f"{{% if not loop.last %}}{_shown(end)}{{% endif %}}{{% set turn.first = false %}}"
        + "{% endif %}{% endfor %}"
    )


def write_gpt2_tokenizer(directory: Path, tokenizer: GPT2Tokenizer, context_length: int, template: Template) -> None:
    """Write the files that transformers (`AutoTokenizer`, or `GPT2Tokenizer`) opens, with the chat template."""
    files = tokenizer.vocab_files()
    for name, content in files.items():
        (directory / _VOCAB[name]).write_bytes(content)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context_length,
        "clean_up_tokenization_spaces": False,
        **{name: EOT for name in ("bos_token", "eos_token", "unk_token")},
        "chat_template": chat_template(template, cut=CUT),
    }
    definition = _definition(json.loads(files["encoder.json"]), files["vocab.bpe"].decode("utf-8"), tokenizer.eot_id)
    for name, facts in (("tokenizer_config.json", config), ("tokenizer.json", definition)):
        (directory / name).write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _definition(vocab: dict[str, int], merges: str, eot_id: int) -> dict[str, Any]:
    """GPT-2's `tokenizer.json`, which cuts at `CUT` first."""
    bytes_ = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    cut = {"type": "Split", "pattern": {"String": CUT}, "behavior": "Removed", "invert": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": eot_id, "content": EOT, **plain, "special": True}],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [cut, bytes_]},
        "post_processor": bytes_,
        "decoder": bytes_,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": vocab,
            "merges": [line for line in merges.splitlines() if line and not line.startswith("#version")],
        },
    }


def _either(first: str, later: str) -> str:
    return f"{{% if turn.first %}}{_block(first)}{{% else %}}{_block(later)}{{% endif %}}"


def _block(source: str) -> str:
    """The same Jinja, safe from what stands around it.

    The line break after the opening tag is trimmed, so that the source starts a line as it does in a template of ours;
    the empty expression keeps transformers from dropping a line break at the end.
    """
    return "{% if true %}\n" + source + "{{ '' }}{% endif %}"


def _shown(text: str) -> str:
    return f"{{{{ {_quoted(text)} }}}}" if text else ""


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
