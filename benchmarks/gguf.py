"""What llama.cpp makes of an exported model: its logits and greedy answers beside ours.

    python -m benchmarks.gguf --run outputs/train/<date>/<time>

Needs llama-cpp-python and the gguf package. For every precision of the weights and of llama.cpp's key-value cache (which is
f16 unless told otherwise): the largest difference of a logit over the prompts and answers of the run's test set, the share
of positions at which both find the same token likeliest, and the share of answers that are the same, all by the same ids.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from itertools import islice, takewhile
from pathlib import Path

import torch

from benchmarks import common

PRECISIONS = ("f32", "f16", "q8_0")
CACHES = ("f32", "f16")


def main() -> None:
    import llama_cpp

    from instruct_lit.config.model_builders import open_model
    from instruct_lit.core.data.example import Example
    from instruct_lit.evaluation.answer_files import read_jsonl
    from instruct_lit.exporters.formats import to_gguf

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--examples", type=int, default=1000, help="of the test set at most")
    parser.add_argument("--tokens", type=int, default=64, help="of an answer at most, as the run was made with")
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    opened = open_model(args.run)
    model, tokenizer = opened.model.eval(), opened.tokenizer
    said = []
    for row in read_jsonl(args.run / "responses.jsonl")[: args.examples]:
        prompt = tokenizer.encode(opened.template.prompt(Example(row["instruction"], "", row["input"])))
        if row["finish_reason"] != "prompt_too_long":
            said.append((prompt, tokenizer.encode(row["response"]), row["response"]))
    rows = []
    for precision in PRECISIONS:
        with tempfile.TemporaryDirectory() as folder:
            to_gguf(opened, Path(folder), "model", precision)
            for cache in CACHES:
                kind = getattr(llama_cpp, f"GGML_TYPE_{cache.upper()}")
                theirs = llama_cpp.Llama(
                    str(Path(folder) / f"model-{precision}.gguf"), n_ctx=model.config.context_length, type_k=kind,
                    type_v=kind, logits_all=True, verbose=False, n_threads=torch.get_num_threads(),
                )  # fmt: skip
                worst, n_same_tokens, n_tokens, n_same = 0.0, 0, 0, 0
                for prompt, response, text in said:
                    ids = (prompt + response)[: model.config.context_length]
                    theirs.reset()
                    theirs.eval(ids)
                    found = torch.from_numpy(theirs.scores[: len(ids)])
                    with torch.no_grad():
                        wanted = model(torch.tensor([ids]))[0]
                    worst = max(worst, float((found - wanted).abs().max()))
                    n_same_tokens += int((found.argmax(1) == wanted.argmax(1)).sum())
                    n_tokens += len(ids)
                    written = takewhile(lambda i: i != tokenizer.eot_id, theirs.generate(prompt, temp=0))
                    n_same += tokenizer.decode(list(islice(written, args.tokens))) == text
                rows.append(
                    {
                        "precision": precision, "cache": cache, "largest_difference": worst,
                        "same_likeliest_token": n_same_tokens / n_tokens, "same_answer": n_same / len(said),
                        "n_answers": len(said), "n_tokens": n_tokens,
                    }
                )  # fmt: skip
                theirs.close()
                print(json.dumps(rows[-1]), flush=True)
    common.write_json(args.json, {"llama_cpp_python": llama_cpp.__version__, "rows": rows})


if __name__ == "__main__":
    main()
