"""Configurations that cannot be: what is wrong is said before any work, all of it at once."""

import sys
import warnings
from pathlib import Path

import pytest
import torch

from instruct_lit.accel import compat_torch, hardware
from instruct_lit.accel.bf16_weights import BF16Weights
from instruct_lit.config import model_builders as build
from instruct_lit.config.check_commands import check_command
from instruct_lit.config.check_machine import check_machine
from instruct_lit.config.check_training import wants_graphs
from instruct_lit.config.compose import CONF
from instruct_lit.core.model import causal as device
from instruct_lit.errors import ConfigError
from tests.configs import composed

MAX = "callbacks.early_stopping.mode=max"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.eval_batch_size=0", "data.eval_batch_size=0: must be at least 1"),
        ("data.max_length=1", "data.max_length=1: must be at least 2"),
        ("n_test_responses=-1", "n_test_responses=-1: must be at least 0"),
        ("model.n_heads=0", "model.n_heads=0: must be at least 1"),
        ("model.activation_checkpointing=0.5", "model.activation_checkpointing=0.5: true, false, or n for every n-th"),
        ("model.dtype=bfloat16", "model.dtype=bfloat16: requires model=hf"),
        ("data.split=0.8", "data.split=0.8: allowed are 'book' and a mapping of train, val and test"),
        ("data.split=null", "data.split=null: allowed are 'book' and a mapping"),
        ("data.filters=length", "data.filters=length: must be a mapping"),
        ("data.filters={length: 9}", "data.filters.length=9: must be a mapping"),
        ("data.columns=[a]", "data.columns=[a]: must be a mapping"),
        ("data.sets=[demo]", "data.sets=[demo]: must be a mapping"),
        ("data.sets={demo: 3}", "data.sets.demo=3: must be a mapping"),
        ("data.sets={demo: {weight: -1}}", "data.sets.demo.weight=-1: must be a number of at least 0"),
        ("data.sets={demo: {repeats: many}}", "data.sets.demo.repeats=many: must be a number of at least 0"),
        ("data.sets={demo: {repeats: 0}}", "data.sets=…: all weights or repeats are 0"),
        ("data.sets={demo: {}}", "data.sets=…: requires data=mixture; of data=demo nothing would be read"),
        ("data=mixture", "data.sets is missing; data=mixture 'data.sets={mine: {path: mine.jsonl}, book: {}}'"),
        ("callbacks.early_stopping=false", "callbacks.early_stopping=false: null switches it off"),
        ("logger.tensorboard=false", "logger.tensorboard=false: null switches it off"),
        (
            "callbacks.early_stopping.monitor=test/loss",
            "callbacks.early_stopping.monitor=test/loss: logged are val/loss",
        ),
        ("optimized_metric=train/loss", "optimized_metric=train/loss: logged are val/loss"),
        ("trainer.min_epochs=4", "trainer.min_epochs=4: must be at most trainer.max_epochs=3"),
        ("optimizer._target_=torch.optim.SparseAdam", "torch.optim.SparseAdam: it takes sparse gradients, which no"),
        ("model.path=null", "model.path=null: model=nano is a folder; give one, or model.pretrained=false"),
    ],
)
def test_impossible_values_are_named(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_command("train", composed("train", override))
    assert message in str(caught.value)


def test_settings_without_effect_or_meaning_are_refused() -> None:
    for overrides, message in (
        (("scheduler=constant", "scheduler.min_ratio=0.1"), "scheduler.min_ratio=0.1: scheduler.decay=constant stays"),
        (("data=files", "data.path=tests", "data.streaming=true", "data.split.train=9"),
         "data.split.train=9: a stream is trained on whole; limit the run by trainer.max_steps"),
        (("loss=dft", "sweep=lr_range"), "loss=dft: the training loss is lowest where a model gives its targets no prob"),
        (("sweep=lr_range", "trainer.max_steps=25"), "trainer.max_steps=25: a range takes finder.n_steps=100 steps; leave"),
        (("sweep=lr_range", "trainer.max_epochs=3"), "trainer.max_epochs=3: a range takes finder.n_steps=100 steps; leave"),
        (("loss=dft", "callbacks.early_stopping.monitor=train/loss"), "monitor=train/loss: with loss=dft the training"),
        (("trainer.min_steps=9", "trainer.max_steps=5"), "trainer.min_steps=9: must be at most trainer.max_steps=5"),
    ):  # fmt: skip
        with pytest.raises(ConfigError) as caught:
            check_command("train", composed("train", *overrides))
        assert message in str(caught.value)


def test_a_model_of_transformers_needs_a_place() -> None:
    with pytest.raises(ConfigError, match=r"model.path=null: give a hub id or a folder \(model=hf\)"):
        check_command("train", composed("train", "model=hf", "model.path=null"))


def test_an_adapter_on_random_weights_only_measures() -> None:
    qlora = ["model=hf", "model.path=owner/name", "adapter=qlora", "model.pretrained=false"]
    with pytest.raises(ConfigError, match=r"adapter.merge=false: a model with random weights, unless verify=false"):
        check_command("train", composed("train", *qlora))
    check_command("train", composed("train", *qlora, "verify=false"))


def test_all_is_said_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        check_command(
            "train", composed("train", "data.batch_size=0", "data.split=1.5", "callbacks.early_stopping=true")
        )
    assert len(str(caught.value).splitlines()) == 3


def test_what_may_be_passes() -> None:
    check_command(
        "train",
        composed(
            "train", "callbacks.early_stopping=null", "model.path=null", "model.pretrained=false", "n_test_responses=0"
        ),
    )
    check_command("train", composed("train", "trainer.accelerator=mps", "model.activation_checkpointing=2"))
    check_command(
        "train", composed("train", "callbacks.early_stopping.monitor=train/loss", "optimized_metric=test/exact_match")
    )
    check_command(
        "train",
        composed(
            "train", "data=mixture", "data.sets={demo: {weight: 0.5}, book: {weight: 0}, mine: {data: demo, weight: 2}}"
        ),
    )


def test_what_callbacks_log_may_be_watched_and_a_sweep_may_prune_in_vain() -> None:
    check_command(
        "train", composed("train", "callbacks=generation_quality", "callbacks.early_stopping.monitor=val/token_f1", MAX)
    )
    pruning = "+callbacks.pruning={_target_: instruct_lit.sweeps.pruning.Pruning, monitor: test/loss}"
    check_command("train", composed("train", pruning, "optimized_metric=test/loss"))
    check_command("train", composed("train", pruning.replace("loss", "exact_match")))  # the sweep has the direction
    metrics = "callbacks.generation_quality.metrics=[exact_match,looping,length_ratio]"
    config = composed("train", "callbacks=generation_quality", metrics)
    for monitor, mode, expected in (
        ("val/exact_match", "max", None), ("val/looping", "min", None), ("val/length_ratio", "min", None),
        ("val/loss", "min", None), ("val/looping", "max", "min"), ("val/exact_match", "min", "max"),
        ("val/loss", "max", "min"), ("val/bits_per_byte", "max", "min"),
    ):  # fmt: skip
        config.callbacks.early_stopping.update(monitor=monitor, mode=mode)
        if expected is None:
            check_command("train", config)
            continue
        message = f"callbacks: EarlyStopping monitors {monitor} with mode={mode}; use mode={expected}"
        with pytest.raises(ConfigError, match=message):
            check_command("train", config)
    sets = ("data=mixture", "data.sets={book: {}, demo: {}}", "callbacks.early_stopping.monitor=val/loss/book", MAX)
    with pytest.raises(ConfigError, match=r"monitors val/loss/book with mode=max; use mode=min"):
        check_command("train", composed("train", *sets))
    with pytest.raises(ConfigError, match=r"callbacks.early_stopping.monitor=val/token_f1: logged are"):
        check_command("train", composed("train", "callbacks.early_stopping.monitor=val/token_f1"))


def test_settings_of_generation_are_checked_before_the_long_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compat_torch, "has_bf16_products", lambda: True)
    with pytest.raises(ConfigError, match=r"generation.top_p=2.0: must be null or above 0 and at most 1"):
        build.sampling_of(composed("train", "generation.top_p=2"))
    greedy = r"^generation.top_k=5: without effect at generation.temperature=0.0, which takes the most likely token$"
    with pytest.warns(UserWarning, match=greedy):
        build.sampling_of(composed("train", "generation.top_k=5"))
    build.sampling_of(composed("train", "generation.top_k=5", "generation.temperature=0.5"))  # nothing to warn of
    with pytest.raises(ConfigError, match=r"generation.dtype=float8: allowed are bfloat16"):
        check_command("train", composed("train", "generation.dtype=float8"))
    assert build.engine_options(composed("train", "generation.dtype=bfloat16")) == {
        "max_rows": 64,
        "make_weights": BF16Weights,
    }
    assert build.engine_options(composed("train")) == {"max_rows": 64}
    assert build.engine_options(composed("train", "generation.cuda_graphs=false"))["make_loops"] == ()


def test_the_shape_of_a_run_folder_is_that_of_its_bundle(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "config.json").write_bytes((CONF.parent / "instruct_lit/nano/config.json").read_bytes())
    assert build.shape_of(composed("train", f"model.path={tmp_path}")).d_model == 128


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("compile=true", "trainer=fsdp"), "compile=true: requires one process on one GPU (trainer=default)"),
        (("forgetting.suite=ifevl",), "did you mean ifeval?"),
        (("forgetting.suite=helm",), "forgetting.suite=helm: not a benchmark of lm-evaluation-harness"),
        (("forgetting.suite=arc", "trainer=ddp"), "forgetting.suite=arc: the other processes would wait for it"),
        (("cuda_graphs=true", "trainer.devices=2"), "cuda_graphs=true: requires one process on one GPU"),
        (
            ("cuda_graphs=true", "trainer.precision=16-mixed"),
            "requires trainer.precision=bf16-mixed, given is 16-mixed",
        ),
        (
            ("cuda_graphs=true", "model.dropout=0.1"),
            "the attention of packed documents with model.dropout has no fixed shapes; use batching=padded",
        ),
        (
            ("cuda_graphs=true", "trainer.detect_anomaly=true"),
            "trainer.detect_anomaly cannot look into a recorded step",
        ),
    ],
)
def test_what_is_for_one_gpu_is_checked(overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_command("train", composed("train", *overrides))
    assert message in str(caught.value)


def test_steps_are_recorded_wherever_that_goes() -> None:
    assert wants_graphs(composed("train")) and wants_graphs(composed("train", "adapter=lora", "trainer.precision=null"))
    assert not wants_graphs(composed("train", "cuda_graphs=false"))
    for draws in ("neftune_alpha=5", "adapter.dropout=0.1", "model.activation_checkpointing=2"):
        assert wants_graphs(composed("train", "adapter=lora", draws))
    assert wants_graphs(composed("train", "adapter=lora", "adapter.dropout=0.1", "model.activation_checkpointing=2"))
    dropout = ["model.dropout=0.1", "batching=padded"]
    for otherwise in (["trainer=ddp"], ["trainer.precision=32-true"], ["trainer.detect_anomaly=true"], dropout):
        config = composed("train", *otherwise)
        check_command("train", config)
        assert not wants_graphs(config), otherwise
    config = composed("train", "cuda_graphs=true", "model.activation_checkpointing=true", *dropout)
    check_command("train", config)
    assert wants_graphs(config)


def test_a_machine_without_a_gpu_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "best_device", lambda: torch.device("cpu"))
    for name in ("compile", "cuda_graphs"):
        with pytest.raises(ConfigError, match=f"{name}=true: is for a CUDA GPU, and this run has none"):
            check_machine(composed("train", f"{name}=true"))
    monkeypatch.setattr(device, "best_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(hardware, "default_precision", lambda accelerator: "32-true")
    check_machine(composed("train", "compile=true"))
    with pytest.raises(ConfigError, match="cuda_graphs=true: this GPU does not compute in bf16"):
        check_machine(composed("train", "cuda_graphs=true"))
    with pytest.raises(ConfigError, match="is for a CUDA GPU, and this run has none"):
        check_machine(composed("train", "compile=true", "trainer.accelerator=cpu"))


def test_liger_needs_a_model_of_transformers_a_gpu_and_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    hf = ["model=hf", "model.path=owner/name", "model.liger=true"]
    for given, message in ((["model.liger=true"], "requires model=hf"), ([*hf, "compile=true"], "compile=true fuses")):
        with pytest.raises(ConfigError, match=f"model.liger=true: {message}"):
            check_command("train", composed("train", *given))
    check_command("train", composed("train", *hf))
    monkeypatch.setattr(device, "best_device", lambda: torch.device("cpu"))
    monkeypatch.setitem(sys.modules, "liger_kernel", None)
    with pytest.raises(ConfigError) as caught:
        check_machine(composed("train", *hf))
    assert "model.liger=true: is for a CUDA GPU, and this run has none" in str(caught.value)
    assert "model.liger=true: needs liger-kernel; pip install -e '.[liger]'" in str(caught.value)


def test_apples_gpu_trains_by_the_plain_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "best_device", lambda: torch.device("mps"))
    for accelerator in ("mps", "auto"):
        check_machine(composed("train", f"trainer.accelerator={accelerator}"))
        for name in ("compile", "cuda_graphs"):
            with pytest.raises(ConfigError, match=f"{name}=true: is for a CUDA GPU, and this run has none"):
                check_machine(composed("train", f"trainer.accelerator={accelerator}", f"{name}=true"))


def test_a_device_that_is_missing_is_refused_by_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "best_device", lambda: torch.device("cpu"))
    for name in ("mps", "gpu", "tpu", "nonsense"):
        with pytest.raises(ConfigError) as caught:
            check_machine(composed("train", f"trainer.accelerator={name}"))
        reason = "this machine has no such device; allowed are auto, cpu"
        assert str(caught.value) == f"trainer.accelerator={name}: {reason}"


def test_a_processor_that_cannot_multiply_in_bf16_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "best_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(compat_torch, "has_bf16_products", lambda: False)
    with pytest.warns(UserWarning, match=r"trainer.precision=bf16-mixed: this processor cannot multiply in bf16"):
        check_machine(composed("train", "trainer.precision=bf16-mixed"))
    with pytest.warns(UserWarning, match=r"generation.dtype=bfloat16: this processor cannot multiply in bf16"):
        build.engine_options(composed("chat", "generation.dtype=bfloat16"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_machine(composed("train"))
        monkeypatch.setattr(compat_torch, "has_bf16_products", lambda: True)
        check_machine(composed("train", "trainer.precision=bf16-mixed"))
        monkeypatch.setattr(compat_torch, "has_bf16_products", lambda: False)
        monkeypatch.setattr(device, "best_device", lambda: torch.device("cuda"))
        check_machine(composed("train", "trainer.precision=bf16-mixed"))
    with pytest.warns(UserWarning, match=r"cannot multiply in bf16"):
        check_machine(composed("train", "trainer.precision=bf16-mixed", "trainer.accelerator=cpu"))


def test_settings_of_an_adapter_require_one() -> None:
    with pytest.raises(ConfigError, match=r"adapter.rank=4: requires an adapter \(adapter=lora\)"):
        check_command("train", composed("train", "adapter.rank=4"))
    check_command("train", composed("train", "adapter=lora", "adapter.rank=4"))
