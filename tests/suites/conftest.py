"""A small random model as a bundle, and the harness's own way to open it."""

from pathlib import Path
from typing import Any

import pytest

from instruct_lit.core.bundle import save_bundle
from instruct_lit.core.data.template import Template
from instruct_lit.core.data.tokenizer import GPT2Tokenizer
from instruct_lit.core.model.gpt import GPT, GPTConfig
from instruct_lit.suites.evaluated_model import EvaluatedModel

GREEDY = {"max_new_tokens": 9, "temperature": 0.0, "top_k": None, "top_p": None, "repetition_penalty": 1.0}
TEMPLATE = Template("short", "### Instruction:\n{{ instruction }}\n\n### Response:\n{{ response }}")


@pytest.fixture(scope="session")
def hub(shared_data: Path) -> Path:
    """Real items, shaped as repositories of the hub."""
    return shared_data / "hub"


@pytest.fixture(scope="session")
def model() -> GPT:
    """Weights larger than usual, so that its choices differ and texts do not end at once."""
    model = GPT(GPTConfig(context_length=512, d_model=32, n_layers=2, n_heads=4))
    model.init_weights(seed=0)
    model.wte.weight.data.mul_(8)
    return model.eval()


@pytest.fixture(scope="session")
def bundle(model: GPT, tokenizer: GPT2Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tuned") / "bundle"
    save_bundle(folder, model, tokenizer, TEMPLATE, GREEDY, {})
    return folder


@pytest.fixture
def evaluated(model: GPT, tokenizer: GPT2Tokenizer) -> EvaluatedModel:
    return EvaluatedModel(model, tokenizer, TEMPLATE)


@pytest.fixture(scope="session")
def theirs(bundle: Path) -> Any:
    """The bundle as lm-evaluation-harness opens it itself."""
    pytest.importorskip("lm_eval")
    transformers = pytest.importorskip("transformers")
    from lm_eval.models.huggingface import HFLM

    model = transformers.GPT2LMHeadModel.from_pretrained(bundle)
    model.generation_config.max_new_tokens = None  # of the bundle, which would overrule what a task asks for
    return HFLM(
        pretrained=model,
        tokenizer=transformers.AutoTokenizer.from_pretrained(bundle),
        batch_size=4,
        device="cpu",
    )
