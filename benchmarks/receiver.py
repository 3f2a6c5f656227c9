"""What another environment's transformers makes of a bundle: prompt ids and greedy ids, as JSON.

Imports nothing of this package, so any Python with transformers (4.57 or newer), and peft for adapters, runs it:

    <python of the environment> benchmarks/receiver.py <bundle> '[[{"role": "user", "content": "Hello"}]]' 16

The bundle is opened and used as its readers use one: `AutoModelForCausalLM`, `AutoTokenizer`, `apply_chat_template` with
`return_dict=True`, whose whole result is given to `generate`, so that an input too many shows in the answer. A folder
with `adapter_config.json` is opened through peft on its base model. `tests/parity/test_other_environments.py` compares the
result with ours.
"""

from __future__ import annotations

import json
import logging
import sys
import warnings
from pathlib import Path
from typing import Any


class _Recorder(logging.Handler):
    """Collects the messages that transformers logs."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def receive(folder: str, conversations: list[Any], n_new: int) -> dict[str, Any]:
    """Open a bundle and answer conversations greedily; the facts that a receiver sees."""
    import torch
    import transformers

    recorder = _Recorder()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_warning()
    logging.getLogger("transformers").addHandler(recorder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    adapter = Path(folder) / "adapter_config.json"
    base = json.loads(adapter.read_text())["base_model_name_or_path"] if adapter.is_file() else folder
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(base)
        stored = str(model.dtype)
        if adapter.is_file():
            import peft

            model = peft.PeftModel.from_pretrained(model, folder)
        model = model.float().eval()
        prompts, answers = [], []
        for messages in conversations:
            inputs = tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
            )
            n_prompt = inputs["input_ids"].shape[1]
            with torch.no_grad():
                written = model.generate(**inputs, max_new_tokens=n_new, do_sample=False)
            prompts.append(inputs["input_ids"][0].tolist())
            answers.append(written[0, n_prompt:].tolist())
    return {
        "transformers": transformers.__version__,
        "inputs": sorted(inputs),
        "dtype": stored,
        "model_max_length": tokenizer.model_max_length,
        "eos_token_id": model.generation_config.eos_token_id,
        "max_length": model.generation_config.max_length,
        "prompts": prompts,
        "answers": answers,
        "messages": recorder.lines + [str(w.message) for w in warned],
    }


if __name__ == "__main__":
    found = receive(sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3]))
    print(json.dumps(found))
