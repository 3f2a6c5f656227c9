"""Literal items in the form of public data sets, in a folder of the hub's shape."""

import json
from collections.abc import Callable
from pathlib import Path

SUBJECTS = (
    "biology", "business", "chemistry", "computer science", "economics", "engineering", "health", "history", "law",
    "math", "other", "philosophy", "physics", "psychology",
)  # fmt: skip


def literal_hub(folder: Path, owner_and_name: str, configs: dict[str, dict[str, list[dict]]]) -> Path:
    """A folder of the hub's shape with one data set: for each of its configurations the items of each split."""
    place = folder / "literal" / owner_and_name
    lines = ["---", "configs:"]
    for config, splits in configs.items():
        lines += [f"- config_name: {config}", "  data_files:"]
        for split, items in splits.items():
            lines += [f"  - split: {split}", f"    path: {config}/{split}.jsonl"]
            (place / config).mkdir(parents=True, exist_ok=True)
            (place / config / f"{split}.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    (place / "README.md").write_text("\n".join([*lines, "---", ""]))
    return folder / "literal"


def splits(item: Callable[[int], dict]) -> dict[str, list[dict]]:
    """Two items for each split."""
    return {name: [item(n), item(n + 1)] for n, name in enumerate(("train", "validation", "test"))}


def arc(n: int) -> dict:
    choices = {"text": ["water", "sand", "iron", "glass"], "label": ["A", "B", "C", "D"]}
    return {"id": str(n), "question": f"What do fish number {n} breathe in?", "answerKey": "A", "choices": choices}


def hellaswag(n: int) -> dict:
    return {
        "activity_label": "Baking", "ctx_a": f"Cook {n} opens the oven.", "ctx_b": "she then", "label": str(n % 4),
        "endings": ["takes out the bread.", "sings [title] a song.", "reads a map.", "swims across."],
    }  # fmt: skip


def truthfulqa(n: int) -> dict:
    choices = ["Nothing happens.", "You turn green.", "You can fly."]
    targets = {"choices": choices, "labels": [1, 0, 0]}
    return {"question": f"What happens if you eat {n} seeds?", "mc1_targets": targets, "mc2_targets": targets}


def winogrande(n: int) -> dict:
    options = {"option1": "Ann", "option2": "Bea", "answer": str(1 + n % 2)}
    return {"sentence": f"Ann gave Bea {n} books because _ had read them.", **options}


def openbookqa(n: int) -> dict:
    choices = {"text": ["the sun", "a stone", "a book", "a spoon"], "label": ["A", "B", "C", "D"]}
    return {"id": str(n), "question_stem": f"Plant {n} gets its light from", "choices": choices, "answerKey": "A"}


def gsm8k(n: int) -> dict:
    return {
        "question": f"Tom has {n} apples and buys 2. How many has he?",
        "answer": f"{n} + 2 = {n + 2}\n#### {n + 2}",
    }


def mmlu_pro(n: int) -> dict:
    return {
        "question": f"Which of these is number {n}?", "options": [str(n + i) for i in range(10)], "answer": "A",
        "answer_index": 0, "cot_content": "A: Let's think step by step. The answer is (A).",
        "category": SUBJECTS[n % len(SUBJECTS)], "question_id": n, "src": "literal",
    }  # fmt: skip


def bbh(n: int) -> dict:
    return {"input": f"not ( {'True' if n % 2 else 'False'} ) is", "target": "False" if n % 2 else "True"}


def ifeval(n: int) -> dict:
    return {
        "key": n, "prompt": f"Write {n} words without a comma.", "instruction_id_list": ["punctuation:no_comma"],
        "kwargs": [{"keywords": None}],
    }  # fmt: skip


MANY = {name: [mmlu_pro(n) for n in range(2 * len(SUBJECTS))] for name in ("validation", "test")}
# By suite: the data set and its configurations.
LITERAL: dict[str, tuple[str, dict[str, dict[str, list[dict]]]]] = {
    "arc": ("allenai/ai2_arc", {"ARC-Easy": splits(arc), "ARC-Challenge": splits(arc)}),
    "hellaswag": ("Rowan/hellaswag", {"default": splits(hellaswag)}),
    "truthfulqa": ("truthfulqa/truthful_qa", {"multiple_choice": {"validation": splits(truthfulqa)["test"]}}),
    "winogrande": ("allenai/winogrande", {"winogrande_xl": splits(winogrande)}),
    "openbookqa": ("allenai/openbookqa", {"main": splits(openbookqa)}),
    "gsm8k": ("openai/gsm8k", {"main": splits(gsm8k)}),
    "mmlu_pro": ("TIGER-Lab/MMLU-Pro", {"default": MANY}),
    "bbh": ("SaylorTwift/bbh", {"boolean_expressions": {"test": splits(bbh)["test"]}}),
    "ifeval": ("google/IFEval", {"default": {"train": [ifeval(1), ifeval(2)]}}),
    "leaderboard": ("TIGER-Lab/MMLU-Pro", {"default": MANY}),
}
