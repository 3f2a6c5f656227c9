"""Liger's kernels give the losses and gradients of the plain code. They run in Triton's interpreter, without a GPU:

TRITON_INTERPRET=1 python -m pytest -m slow tests/hf/test_liger.py

Half precision is float16: the interpreter multiplies bfloat16 as if its numbers were integers.
"""

import copy
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from instruct_lit.core.model.attention import PackedDocuments
from instruct_lit.core.training.loss import summed_cross_entropy
from instruct_lit.errors import ConfigError
from instruct_lit.hf import compat_liger
from instruct_lit.hf.adapters import Adapter
from instruct_lit.hf.files import load_hf

transformers = pytest.importorskip("transformers")
triton, liger = pytest.importorskip("triton"), pytest.importorskip("liger_kernel")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs TRITON_INTERPRET=1 from the start"),
    pytest.mark.filterwarnings("ignore"),
]


@pytest.fixture(autouse=True)
def interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the interpreter lacks: methods of a kernel's float arguments, functions of the GPU's library."""
    import numpy as np
    import triton.language as tl
    from liger_kernel.ops import geglu, rms_norm
    from triton.runtime import interpreter

    convert = interpreter._implicit_cvt

    def converted(argument: Any) -> Any:
        if not isinstance(argument, float):
            return convert(argument)
        return tl.tensor(interpreter.TensorHandle(np.array([argument], dtype=np.float32), tl.float32), tl.float32)

    monkeypatch.setattr(interpreter, "_implicit_cvt", converted)
    monkeypatch.setattr(rms_norm, "rsqrt", lambda x: tl.rsqrt(x))
    monkeypatch.setattr(geglu, "tanh", lambda x: 2 / (1 + tl.exp(-2 * x)) - 1)
    monkeypatch.setattr(compat_liger, "_runs_kernels", lambda x: True)


def folder_of(kind: str, place: Path) -> str:
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=64, bos_token_id=0, eos_token_id=1,
        architectures=[f"{kind}ForCausalLM"],
    )  # fmt: skip
    config.save_pretrained(place)
    return str(place)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("kind", ["Llama", "Qwen3", "Gemma"])
def test_losses_and_gradients_are_those_of_the_plain_code(kind: str, adapted: bool, half: bool, tmp_path: Path) -> None:
    folder, results = folder_of(kind, tmp_path), []
    for given in (False, True):
        model = load_hf(folder, pretrained=False, seed=1, liger=given)
        if adapted:
            torch.manual_seed(0)
            Adapter(model, rank=2)
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    torch.nn.init.normal_(parameter, std=0.1)
        model = copy.deepcopy(model)
        ids, index = torch.arange(20) * 7 % 64, torch.tensor([3, 5, 9, 12, 19])
        positions, layout = torch.cat((torch.arange(10), torch.arange(4, 14))), PackedDocuments((6, 10), 4)
        with torch.autocast("cpu", torch.float16, enabled=half):
            states = model.hidden_states(ids, positions, layout, index)
            targets, weights = torch.tensor([3, 1, 4, 1, 5]), torch.full((5,), 0.2)
            loss = summed_cross_entropy(states, model.head_weight, targets, weights)
        loss.backward()
        results.append((loss.item(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])))
        assert model.no_layouts is None
    (plain, of_plain), (found, of_found) = results
    assert found == pytest.approx(plain, rel=3e-3 if half else 1e-6)
    assert (of_found - of_plain).norm() / of_plain.norm() < (0.03 if half else 1e-5)


def test_what_other_models_use_stays_and_a_cpu_has_no_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.llama import modeling_llama

    before, calls = dict(vars(modeling_llama)), []
    folder = folder_of("Llama", tmp_path)
    monkeypatch.setattr(compat_liger, "_runs_kernels", lambda x: calls.append(x.shape))
    model = load_hf(folder, pretrained=False, liger=True)
    assert dict(vars(modeling_llama)) == before
    calls.clear()
    other = load_hf(folder, pretrained=False)
    assert not calls
    ids = torch.arange(9)[None]
    assert torch.equal(model.hidden_states(ids), other.hidden_states(ids))
    assert len(calls) == 2 * 4 + 1, "norms, MLP, rotary embedding of two blocks, and the final norm"


def test_an_unknown_architecture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="model.liger=true: Liger has no kernels for gpt_neox; leave it out"):
        load_hf(folder_of("GPTNeoX", tmp_path), pretrained=False, liger=True)
