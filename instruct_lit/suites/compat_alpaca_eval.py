"""A program for AlpacaEval's own environment: judges the responses in its folder and writes `result.json`.

It also holds what is used of alpaca_eval beyond its documented `evaluate`, each with the reason; the version is pinned
in `alpaca_eval.py`. It imports nothing of this package, which is not installed there.
"""

import json
import math
import os
from pathlib import Path
from typing import Any


def annotator_of(task: dict[str, Any]) -> str:
    """The folder of the package's judge, or of a copy of it with another model.

    Undocumented: the folder `evaluators_configs` and the layout of its `configs.yaml`. `evaluate` takes a folder, but
    has no argument for the model of one.
    """
    import alpaca_eval
    import yaml

    stock = Path(alpaca_eval.__file__).parent / "evaluators_configs"
    if not task["judge_model"]:
        return str(stock / task["annotator"])
    (settings,) = yaml.safe_load((stock / task["annotator"] / "configs.yaml").read_text()).values()
    settings["prompt_template"] = str(stock / settings["prompt_template"])
    settings["completions_kwargs"]["model_name"] = task["judge_model"]
    if not task["logprobs"]:  # the verdict is read from the text
        for key in ("logprobs", "top_logprobs"):
            settings["completions_kwargs"].pop(key, None)
        settings["completions_kwargs"] |= {"max_tokens": 8, "temperature": 0}
        settings |= {
            "fn_completion_parser": "regex_parser",
            "completion_parser_kwargs": {"outputs_to_match": {1: r"(?:^|\W)m(?:\W|$)", 2: r"(?:^|\W)M(?:\W|$)"}},
        }
        settings.pop("completion_key", None)
    folder = Path("annotator").resolve()
    folder.mkdir(exist_ok=True)
    (folder / "configs.yaml").write_text(yaml.safe_dump({"judge": settings}))
    return str(folder)


def use_length_table(path: str | None) -> None:
    """Let the length-controlled win rate read a local table.

    Undocumented: `alpaca_eval.metrics.glm_winrate.hf_hub_download`, by which the package downloads the table in every
    evaluation; it has no argument for a file.
    """
    from alpaca_eval.metrics import glm_winrate

    if not hasattr(glm_winrate, "hf_hub_download"):
        raise AttributeError("alpaca_eval.metrics.glm_winrate.hf_hub_download is gone (use_length_table)")
    glm_winrate.hf_hub_download = lambda **_: path


def write_verdicts_whole() -> None:
    """Let the package replace its file of verdicts whole, one process at a time.

    Undocumented: `alpaca_eval.annotators.base.BaseAnnotatorJSON.save`, which writes the file in place: what a killed
    program leaves of it would end every later one.
    """
    from alpaca_eval.annotators.base import BaseAnnotatorJSON
    from filelock import FileLock

    save = BaseAnnotatorJSON.save

    def save_whole(self: Any) -> None:
        new = f"{self.caching_path}.part"
        with FileLock(f"{self.caching_path}.lock"):
            save(self, new)
            os.replace(new, self.caching_path)

    BaseAnnotatorJSON.save = save_whole


def main() -> None:
    """Judge, and write the leaderboard's row."""
    from alpaca_eval import evaluate

    task = json.loads(Path("task.json").read_text())
    use_length_table(task["length_table"])
    write_verdicts_whole()
    board, verdicts = evaluate(
        model_outputs=json.loads(Path("model_outputs.json").read_text()),
        reference_outputs=json.loads(Path("reference_outputs.json").read_text()),
        annotators_config=annotator_of(task),
        name="instruct-lit",
        output_path=".",
        precomputed_leaderboard=None,
        is_return_instead_of_print=True,
        fn_metric="get_length_controlled_winrate" if task["length_table"] else "get_winrate",
        sort_by="win_rate",
        caching_path=task["verdicts"],
    )
    row = board.loc["instruct-lit"].to_dict()
    n_read = sum(v["preference"] is not None and not math.isnan(v["preference"]) for v in verdicts)
    Path("result.json").write_text(json.dumps({**row, "n_total": n_read}, default=str))


if __name__ == "__main__":
    main()
