"""Real chat templates against this program: are the ids of training those of transformers, and what is learnt?

    python -m benchmarks.chat_templates FOLDER [--variables '{"enable_thinking": false}']

Puts one conversation of each kind through every `.jinja` file of a folder, with a byte-level tokenizer whose special
tokens are the tags in the file. `same`: one example with the ids of `apply_chat_template`, and before each learnt span
those of `add_generation_prompt=True`; `per turn`: the same in one example per learnt turn; `no end`: the template closes no
answer, which end-of-text does here; else the reason of a refusal.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from instruct_lit.core.data.encode import Encoder
from instruct_lit.core.data.example import to_example
from instruct_lit.datasets import install
from instruct_lit.errors import InstructLitError
from instruct_lit.hf.chat_template import with_chat
from instruct_lit.hf.tokenizer import HFTokenizer

TAG = re.compile(
    r"<[|\uff5c][^<>{}\s'\"]{1,40}[|\uff5c]>|</?(?:s|eos|bos|start_of_turn|end_of_turn)>|\[/?[A-Z_]{3,30}\]"
)
ENDS = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "<\uff5cend\u2581of\u2581sentence\uff5c>", "</s>")
SYSTEM = {"role": "system", "content": "Be exact."}
USER, ANSWER = {"role": "user", "content": "What is 1 + 2?"}, {"role": "assistant", "content": "It is three."}
TOOL = {"type": "function", "function": {
    "name": "add_numbers", "description": "Add.",
    "parameters": {"type": "object", "properties": {"a": {"type": "integer", "description": "A."}}, "required": ["a"]},
}}  # fmt: skip
CALL = {"id": "call00001", "type": "function", "function": {"name": "add_numbers", "arguments": {"a": 1}}}
CALLING = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": "3", "tool_call_id": "call00001", "name": "add_numbers"}
THINKING = {**ANSWER, "reasoning_content": "One more than two."}
KINDS: dict[str, dict[str, Any]] = {
    "single": {"messages": [USER, ANSWER]},
    "system": {"messages": [SYSTEM, USER, ANSWER]},
    "turns": {"messages": [USER, ANSWER, USER, ANSWER]},
    "thoughts": {"messages": [USER, THINKING]},
    "thoughts in turns": {"messages": [USER, THINKING, USER, THINKING]},
    "tools": {"messages": [USER, CALLING, RESULT, ANSWER], "tools": [TOOL]},
}


def tokenizer_for(text: str) -> HFTokenizer:
    """A byte-level tokenizer without merges, whose special tokens are the tags in a template."""
    import tokenizers
    import transformers

    tags = sorted({"<s>", "</s>", *TAG.findall(text)})
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    names = [*tags, *alphabet]
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE({name: n for n, name in enumerate(names)}, []))
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    bpe.add_special_tokens([tokenizers.AddedToken(tag, special=True, normalized=False) for tag in tags])
    end = next((name for name in ENDS if name in tags and name != "</s>"), "</s>")
    hf = transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<s>", eos_token=end, additional_special_tokens=tags
    )
    hf.chat_template = text
    return HFTokenizer(hf)


def outcome(text: str, record: dict[str, Any], variables: dict[str, Any]) -> tuple[str, list[str]]:
    """What happens to a record under a template, and what is learnt of it."""
    try:
        tokenizer, template = with_chat(tokenizer_for(text), {k: v for k, v in variables.items() if k in text})
        example = to_example(record, "record")
        found = list(Encoder(template, tokenizer, 100_000, "error").encode([example]))
    except InstructLitError as error:
        return str(error).removeprefix("template=chat: the model's chat template ").partition("; ")[0], []
    learnt = []
    for one, encoded in found:
        messages = [dict(message) for message in one.messages] or template.messages(one)
        places = [n for n, message in enumerate(messages) if message["role"] == "assistant"][-len(encoded.spans) :]
        render = {"tools": list(one.tools) or None, "return_dict": False}
        whole = tokenizer.hf.apply_chat_template(messages, **render)
        if template.end is None:  # type: ignore[attr-defined]
            return "no end", []
        if encoded.ids.tolist() != whole[: len(encoded.ids)]:
            return "DIFFERS", []
        for place, (start, end) in zip(places, encoded.spans, strict=True):
            prompt = tokenizer.hf.apply_chat_template(messages[:place], add_generation_prompt=True, **render)
            if encoded.ids[:start].tolist() != prompt:
                return "DIFFERS before a response", []
            learnt.append(tokenizer.decode(encoded.ids[start:end].tolist()))
    return "same" if len(found) == 1 else "per turn", learnt


def main() -> None:
    """Print a table of outcomes, or write it with what is learnt as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--variables", type=json.loads, default={})
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    install()
    rows: dict[str, dict[str, Any]] = {}
    for file in sorted(arguments.folder.rglob("*.jinja")):
        text = file.read_text(encoding="utf-8")
        found = {kind: outcome(text, record, arguments.variables) for kind, record in KINDS.items()}
        rows[file.stem] = {kind: {"outcome": said, "learnt": learnt} for kind, (said, learnt) in found.items()}
        print(f"{file.stem}: " + "; ".join(f"{kind}: {said[:90]}" for kind, (said, _) in found.items()), flush=True)
    for kind in KINDS:
        counts = Counter(row[kind]["outcome"] for row in rows.values())
        exact = {name: counts.pop(name, 0) for name in ("same", "per turn", "no end")}
        print(f"{kind}: {exact}, refused {sum(counts.values())} of {len(rows)}")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
