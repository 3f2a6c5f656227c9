"""What tests of every room share."""

from pathlib import Path

import pytest

from instruct_lit.data.tokenizer import GPT2Tokenizer
from instruct_lit.model.gpt import GPT, GPTConfig

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real records and benchmark items that lie beside the repository; tests that need them skip without."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("../shared/data is not here")
    return folder


@pytest.fixture(scope="session")
def tokenizer() -> GPT2Tokenizer:
    """GPT-2's tokenizer."""
    return GPT2Tokenizer()


@pytest.fixture
def tiny_model() -> GPT:
    """A GPT with random weights and GPT-2's vocabulary, small enough for any test."""
    model = GPT(GPTConfig(context_length=64, d_model=32, n_layers=2, n_heads=4))
    model.init_weights(seed=0)
    return model.eval()
