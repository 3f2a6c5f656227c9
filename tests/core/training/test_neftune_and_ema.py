"""Noise on embeddings and averaged weights, in real runs of the Trainer."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning import Callback
from lightning.pytorch.callbacks import EMAWeightAveraging

from instruct_lit.core.model.causal import CausalLM
from instruct_lit.core.model.gpt import GPT
from instruct_lit.core.training.checkpoints import Checkpoint, load_weights, read_checkpoint
from instruct_lit.hf.files import load_hf
from instruct_lit.hf.trainable import choose_trainable
from instruct_lit.resume.last_checkpoint import LastCheckpoint


@pytest.fixture(params=["gpt", "llama"])
def model(request: pytest.FixtureRequest) -> CausalLM:
    if request.param == "gpt":
        return request.getfixturevalue("tiny_model")
    pytest.importorskip("transformers")
    return load_hf(str(request.getfixturevalue("llama_directory")))


def test_noise_is_uniform_of_the_given_width_and_in_training_only(model: CausalLM) -> None:
    seen: list[torch.Tensor] = []
    model.embedding_noise = 0.25
    table = model.wte if isinstance(model, GPT) else model.hf.get_input_embeddings()  # type: ignore[attr-defined]
    clean = table.weight[7].detach()
    first = model.dropout if isinstance(model, GPT) else model.blocks[0]
    first.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    ids = torch.full((1, 40), 7)
    for training in (True, False):
        model.train(training)
        model.hidden_states(ids)
    offset = model.wpe.weight[:40].detach() if isinstance(model, GPT) else 0
    noise, none = (states - clean - offset for states in seen)
    assert none.abs().max() < 1e-6
    assert noise.abs().max() <= 0.25 + 1e-6 and noise.abs().max() > 0.2
    assert noise.std().item() == pytest.approx(0.25 / math.sqrt(3), rel=0.1)


def test_the_width_follows_the_lengths_without_padding(
    make_tuner: Callable, make_data: Callable, fit: Callable
) -> None:
    widths = {}
    for layout in ("padded", "packed"):
        tuner = make_tuner()
        tuner.neftune_alpha = 5.0
        fit(tuner, make_data(n_train=8, layout=layout), max_epochs=1)
        widths[layout] = tuner.model.embedding_noise
    assert widths["padded"] == widths["packed"] > 0
    data = make_data(n_train=8)
    data.prepare_data()
    data.setup()
    store, indices = data.examples_of("train")
    mean = sum(len(store[int(i)].ids) - 1 for i in indices) / 8
    assert widths["packed"] == pytest.approx(5 / math.sqrt(mean * 16))


class Weights(Callback):
    """The head's weights after every step."""

    def __init__(self) -> None:
        self.after: list[torch.Tensor] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.after.append(pl_module.model.ln_f.weight.detach().clone())


@pytest.mark.parametrize("trainable", ["all", "last_1_block"])
def test_the_best_checkpoint_holds_the_average(
    make_tuner: Callable, make_data: Callable, fit: Callable, tmp_path: Path, trainable: str
) -> None:
    tuner, weights = make_tuner(), Weights()
    choose_trainable(tuner.model, trainable)
    best = Checkpoint(tmp_path / "c", filename="best", monitor="val/loss", save_top_k=1, enable_version_counter=False)
    ema = EMAWeightAveraging(decay=0.5)
    fit(tuner, make_data(), ema, weights, best, enable_checkpointing=True, limit_val_batches=None, max_epochs=1)
    average = weights.after[0]
    for value in weights.after[1:]:
        average = 0.5 * average + 0.5 * value
    saved = read_checkpoint(tmp_path / "c" / "best.ckpt")["state_dict"]
    torch.testing.assert_close(saved["model.ln_f.weight"], average)
    assert not torch.allclose(average, weights.after[-1])
    assert ("model.wte.weight" in saved) == (trainable == "all")
    torch.testing.assert_close(tuner.model.ln_f.weight, average)  # the run's result too
    again = make_tuner()
    choose_trainable(again.model, trainable)
    load_weights(tmp_path / "c" / "best.ckpt", again)
    torch.testing.assert_close(again.model.ln_f.weight, average)


@pytest.mark.parametrize("trainable", ["all", "last_1_block"])
def test_an_average_is_resumed(
    make_tuner: Callable, make_data: Callable, fit: Callable, tmp_path: Path, trainable: str
) -> None:
    def tuner():
        made = make_tuner()
        choose_trainable(made.model, trainable)
        return made

    whole = tuner()
    fit(whole, make_data(), EMAWeightAveraging(decay=0.5), max_epochs=2)
    last = LastCheckpoint(str(tmp_path))
    fit(tuner(), make_data(), EMAWeightAveraging(decay=0.5), last, enable_checkpointing=True, max_epochs=1)
    second = tuner()
    fit(second, make_data(), EMAWeightAveraging(decay=0.5), max_epochs=2, ckpt_path=last.path)
    assert second.trainer.global_step == whole.trainer.global_step == 6
    for (name, a), b in zip(whole.model.named_parameters(), second.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, msg=name)
