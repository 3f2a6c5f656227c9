"""Benchmark items in a run's training data: reported before the scores, and the figures without them."""

import json
from pathlib import Path

import pytest
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from instruct_lit.benchmark import benchmark
from instruct_lit.config.filter_builders import filters_of, suite_items
from instruct_lit.core.bundle import save_bundle
from instruct_lit.core.data.example import Example
from instruct_lit.core.data.template import Template
from instruct_lit.core.data.tokenizer import GPT2Tokenizer
from instruct_lit.core.model.gpt import GPT, GPTConfig
from instruct_lit.errors import ConfigError
from tests.configs import composed
from tests.suites.literal_items import literal_hub

GREEDY = {"max_new_tokens": 9, "temperature": 0.0, "top_k": None, "top_p": None, "repetition_penalty": 1.0}


def test_leaked_items_are_reported_and_left_out(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    model = GPT(GPTConfig(context_length=256, d_model=16, n_layers=1, n_heads=2))
    model.init_weights(seed=0)
    template = Template("short", "### Instruction:\n{{ instruction }}\n\n### Response:\n{{ response }}")
    save_bundle(tmp_path / "run" / "bundle", model, GPT2Tokenizer(), template, GREEDY, {})

    def run(name: str) -> dict:
        out = tmp_path / name
        out.mkdir()
        config = composed(
            "benchmark", "suite=mmlu", "suite.tasks=[mmlu_anatomy]", "benchmark.limit=4", "benchmark.n_shot=0",
            f"benchmark.data_dir={shared_data / 'hub'}", "benchmark.template=off", f"run={tmp_path / 'run'}",
            f"hydra.runtime.output_dir={out}", f"paths.cache={tmp_path / 'cache'}", hydra=True,
        )  # fmt: skip
        HydraConfig.instance().set_config(config)
        benchmark(config)  # type: ignore[arg-type]
        return json.loads((out / "benchmark.json").read_text())["runs"][0]

    before = run("before")
    assert "leaks" not in before["details"]  # a bundle without a run folder around it: nothing is known
    (file,) = (tmp_path / "before").glob("*/samples_mmlu_anatomy.jsonl")
    samples = [json.loads(line) for line in file.read_text().splitlines()]
    document = samples[1]["doc"]
    asked = "\n".join(
        [
            document["question"],
            *(f"{letter}. {text}" for letter, text in zip("ABCD", document["choices"], strict=True)),
            "Answer:",
        ]
    )
    records = [{"instruction": text, "output": "yes"} for text in ("Say yes.", asked, "Say it again.")]
    (tmp_path / "records.json").write_text(json.dumps(records))
    given = ["data=files", f"data.path={tmp_path / 'records.json'}", "data.split={train:3,val:0,test:0}"]
    trained = composed("train", *given, "model.pretrained=false", f"paths.cache={tmp_path / 'cache'}")
    (tmp_path / "run" / "config.yaml").write_text(
        OmegaConf.to_yaml({name: OmegaConf.to_container(trained[name], resolve=True) for name in ("data", "model")})  # type: ignore[index]
    )
    capsys.readouterr()
    after = run("after")
    shown = capsys.readouterr().out
    leaks = after["details"]["leaks"]["mmlu_anatomy"]
    assert leaks["n"] == 1 and leaks["items"] == [{"item": 1, "train": 1, "kind": "exact", "similarity": 1.0}]
    assert after["score"] == before["score"]
    assert leaks["value_without"] == pytest.approx(sum(s["acc"] for s in samples if s["doc_id"] != 1) / 3)
    assert shown.index("1 items of mmlu_anatomy are in the training data or close to it") < shown.index(
        "chance, majority"
    )
    assert "mmlu_anatomy without its 1 leaked items" in shown


@pytest.mark.slow
def test_the_items_of_a_benchmark_are_removed_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("lm_eval", "sklearn", "immutabledict"):
        pytest.importorskip(module)
    prompts = ["Write a poem about the sea in four lines, without commas.", "Name a town."]
    items = [
        {"key": n, "prompt": prompt, "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
        for n, prompt in enumerate(prompts)
    ]
    hub = literal_hub(tmp_path, "google/IFEval", {"default": {"train": items}})
    filters = filters_of(OmegaConf.create({"leaks": {"suites": ["ifeval"], "data_dir": str(hub)}}))
    assert filters is not None
    examples = [
        Example("Without commas write in four lines a poem about the sea!", "x"),
        Example("Name a bird.", "wren"),
    ]
    assert list(filters(examples)) == examples[1:] and filters.counts == {"n_filtered_leaks": 1}
    for name, message in (("nothing", "allowed are "), ("helm", "not a benchmark of lm-evaluation-harness")):
        with pytest.raises(ConfigError, match=rf"suites=\[{name}\]: {message}"):
            suite_items(name, None)
