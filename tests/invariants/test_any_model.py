"""The traps of the design on any model: our GPT-2, and transformers' Llama (grouped heads), Qwen 3 (normed queries) and
Gemma (scaled embeddings), each whole and with an adapter, plain and with compiled blocks."""

import copy
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from instruct_lit.accel.adamw import adamw
from instruct_lit.accel.bf16_weights import BF16Weights
from instruct_lit.accel.forwards import ReplacedForwards
from instruct_lit.accel.gated_mlp import gated_mlps
from instruct_lit.accel.shared_casts import shared_casts
from instruct_lit.accel.step import AcceleratedStep
from instruct_lit.core.bundle import open_model, save_bundle
from instruct_lit.core.data.batching import Collator, pad_shift_mask
from instruct_lit.core.data.datamodule import InstructionData
from instruct_lit.core.data.encode import EncodedExample, Encoder
from instruct_lit.core.data.example import Example
from instruct_lit.core.data.template import Template
from instruct_lit.core.data.tokenizer import EOT, GPT2Tokenizer, Tokenizer
from instruct_lit.core.generation.engine import Engine
from instruct_lit.core.generation.sampling import SamplingSettings
from instruct_lit.core.model.causal import CausalLM
from instruct_lit.core.model.gpt import GPT, GPTConfig
from instruct_lit.core.training.loss import FitFacts, layout_of, summed_cross_entropy
from instruct_lit.datasets.demo import DemoSource
from instruct_lit.hf.adapters import Adapter
from instruct_lit.hf.chat_template import with_chat
from instruct_lit.hf.files import load_hf
from instruct_lit.hf.model import HFModel
from instruct_lit.hf.tokenizer import load_tokenizer
from tests.fixtures.data import settings
from tests.hf.test_model import OF

AutoModelForCausalLM = pytest.importorskip("transformers").AutoModelForCausalLM

EXAMPLES = [
    Example("Name a colour.", "red"), Example("Repeat.", " a space", "the cat"), Example("Count.", "\n1\n2\n3"),
    Example("Smile", "🙂🙂"), Example(f"What is {EOT} or <|end|>?", f"an {EOT}, a <|end|>"), Example("Nothing", ""),
    Example("Write a long word about the dog and the cat.", "the dog the cat " * 3),
]  # fmt: skip
LENGTH = 150
LAYOUTS = [("padded", False), ("padded", True), ("packed", False), ("packed", True)]


@dataclass(eq=False)
class Case:
    model: CausalLM
    tokenizer: Tokenizer
    template: Template
    compiled: bool = False  # whether training compiles blocks

    def encoded(self, max_length: int = LENGTH) -> list[EncodedExample]:
        return [e for _, e in Encoder(self.template, self.tokenizer, max_length).encode(EXAMPLES)]

    def collator(self, layout: str = "padded", shared_prefix: bool = False, mask_prompt: bool = True) -> Collator:
        return Collator(self.tokenizer.eot_id, self.tokenizer.n_bytes_of, layout, shared_prefix, mask_prompt)  # type: ignore[arg-type]


QUICK = ["gpt2", "llama", "llama lora"]
ALL = [f"{name}{more}" for more in ("", " lora", " compiled", " lora compiled") for name in
       ("gpt2", "llama", "qwen3", "gemma")]  # fmt: skip


@functools.cache
def compiled_form(function: Callable) -> Callable:
    return torch.compile(function, dynamic=True, backend="eager")


@pytest.fixture(
    scope="module", params=[*QUICK, *(pytest.param(n, marks=pytest.mark.slow) for n in ALL if n not in QUICK)]
)
def case(request: pytest.FixtureRequest) -> Case:
    name, *more = request.param.split()
    if name == "gpt2":
        model: CausalLM = GPT(GPTConfig(context_length=LENGTH, d_model=24, n_layers=2, n_heads=3))
        model.init_weights(seed=4)
        language = GPT2Tokenizer(), Template("t", "Do: {{ instruction }} {{ input }}\nAnswer: {{ response }}")
    else:
        folder: Path = request.getfixturevalue("llama_directory")
        model, language = load_hf(str(folder)), with_chat(load_tokenizer(str(folder)))
        if name != "llama":
            config = OF[name]()
            config.vocab_size, config.max_position_embeddings = model.config.n_vocab, model.config.context_length
            torch.manual_seed(4)
            model = HFModel(AutoModelForCausalLM.from_config(config))
    if "lora" in more:
        pytest.importorskip("peft")
        Adapter(model, rank=3)
        random = torch.Generator().manual_seed(1)
        for parameter_name, p in model.named_parameters():
            if "lora_" in parameter_name:
                p.data.normal_(0, 0.1, generator=random)
    return Case(model.eval(), *language, "compiled" in more)


def losses(
    case: Case, parts: Sequence[Sequence[EncodedExample]], collator: Collator, dft: bool = False
) -> tuple[float, dict[str, torch.Tensor]]:
    """The mean loss over all supervised tokens of the parts, and its gradients."""
    model = copy.deepcopy(case.model).train()
    model.compiler = compiled_form if case.compiled else None
    batches = [collator(part) for part in parts]
    n_supervised = sum(batch.n_supervised for batch in batches)
    total = 0.0
    for batch in batches:
        states = model.hidden_states(batch.input_ids, batch.position_ids, layout_of(batch), batch.loss_index)
        weights = batch.loss_weights / max(1, n_supervised)
        loss = summed_cross_entropy(states, model.head_weight, batch.targets, weights, dft, model.logit_cap)
        loss.backward()
        total += loss.item()
    return total, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@functools.cache
def plain(case: Case, mask_prompt: bool) -> tuple[float, dict[str, torch.Tensor]]:
    """The same by torch's own cross-entropy over whole logits of the padded batch, computed once."""
    model = copy.deepcopy(case.model)
    inputs, targets = pad_shift_mask(case.encoded(), case.tokenizer.eot_id, mask_prompt=mask_prompt)
    logits = model.logits(model.hidden_states(inputs))
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100)
    loss.backward()
    return loss.item(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_what_a_fast_step_replaces_changes_no_loss_and_no_gradient(case: Case) -> None:
    expected, gradients = plain(case, True)
    for optimizer_of in (lambda p: adamw([{"params": p}], lr=0.0), torch.optim.SGD):  # with copies of weights, without
        model, step = copy.deepcopy(case.model).train(), AcceleratedStep()
        step.attach(model)
        optimizer = optimizer_of([p for p in model.parameters() if p.requires_grad])
        step.start(optimizer, FitFacts("32-true", 1, False))
        forwards = shared_casts(model) | gated_mlps(model) if step.copies is None else {}
        replaced = ReplacedForwards(forwards).attach()
        batch = case.collator("packed", True)(case.encoded())
        loss = step.loss(batch, batch.loss_weights / batch.n_supervised)
        loss.backward()
        assert loss.item() == pytest.approx(expected, rel=1e-5)
        for name, p in model.named_parameters():
            if name in gradients:
                torch.testing.assert_close(p.grad, gradients[name], rtol=1e-3, atol=1e-5, msg=name)
        step.stop(optimizer)
        replaced.detach()


def test_traps_1_and_2_one_supervised_end_unless_cut_and_the_header_survives(case: Case) -> None:
    whole = case.encoded()
    batch = case.collator("packed")(whole)
    assert int((batch.targets == case.tokenizer.eot_id).sum()) == len(EXAMPLES)
    longest = max(len(e.ids) for e in whole)
    cut = case.encoded(longest - 1)
    assert sum(int(e.ids[-1] == case.tokenizer.eot_id) for e in cut) == len(EXAMPLES) - 1
    for before, after in zip(whole, cut, strict=True):
        assert before.prompt_ids == after.prompt_ids and after.n_prompt < len(after.ids)


def test_trap_3_prompt_ids_are_those_of_generation(case: Case) -> None:
    encoder = Encoder(case.template, case.tokenizer, LENGTH)
    for example, encoded in zip(EXAMPLES, case.encoded(), strict=True):
        assert encoded.prompt_ids == encoder.prompt_ids(Example(example.instruction, "", example.input))
        said = case.tokenizer.decode(encoded.ids[encoded.n_prompt : -1].tolist())
        assert said == example.output


def test_trap_4_no_special_token_comes_out_of_a_text(case: Case) -> None:
    innocent, nasty = (case.encoded()[i] for i in (0, 4))
    ends = [int((e.ids == case.tokenizer.eot_id).sum()) for e in (innocent, nasty)]
    assert ends[0] == ends[1]


def test_trap_6_every_supervised_token_is_predicted_from_what_stands_before_it(case: Case) -> None:
    one = case.encoded()[0]
    expected = 0.0
    with torch.no_grad():
        for place in range(one.n_prompt, len(one.ids)):
            states = case.model.hidden_states(torch.from_numpy(one.ids[None, :place]))[0, -1]
            expected -= float((case.model.head_weight @ states).log_softmax(0)[one.ids[place]])
    loss, _ = losses(case, [[one]], case.collator())
    assert loss == pytest.approx(expected / (len(one.ids) - one.n_prompt), rel=1e-4)


@pytest.mark.parametrize(("layout", "shared_prefix"), LAYOUTS)
@pytest.mark.parametrize("mask_prompt", [True, False])
def test_traps_7_and_10_loss_and_gradients_do_not_depend_on_layout_and_cut(
    case: Case, layout: str, shared_prefix: bool, mask_prompt: bool
) -> None:
    expected, wanted = plain(case, mask_prompt)
    examples = case.encoded()
    for parts in ([examples], [examples[:2], examples[2:3], examples[3:]]):
        loss, gradients = losses(case, parts, case.collator(layout, shared_prefix, mask_prompt))
        assert loss == pytest.approx(expected, rel=1e-5) and gradients.keys() == wanted.keys()
        for name, gradient in gradients.items():
            assert (gradient - wanted[name]).norm() <= 1e-4 * wanted[name].norm() + 1e-7, name


def test_dft_does_not_depend_on_layout_and_cut_and_is_another_loss(case: Case) -> None:
    examples = case.encoded()
    expected, wanted = losses(case, [examples], case.collator(), dft=True)
    assert expected < 0.5 * plain(case, True)[0]
    parts = [examples[:2], examples[2:3], examples[3:]]
    loss, gradients = losses(case, parts, case.collator("packed", shared_prefix=True), dft=True)
    assert loss == pytest.approx(expected, rel=1e-5)
    for name, gradient in gradients.items():
        assert (gradient - wanted[name]).norm() <= 1e-4 * wanted[name].norm() + 1e-7, name


def test_trap_9_nothing_supervised_moves_nothing(case: Case) -> None:
    loss, gradients = losses(case, [[]], case.collator("packed"))
    assert loss == 0.0 and all(not gradient.any() for gradient in gradients.values())


def test_trap_10_a_document_does_not_see_its_neighbour(case: Case) -> None:
    first, second, other = (case.encoded()[i] for i in (0, 2, 6))
    states = []
    for neighbour in (first, other):
        batch = case.collator("packed", shared_prefix=True)([neighbour, second])
        with torch.no_grad():
            hidden = case.model.hidden_states(batch.input_ids, batch.position_ids, layout_of(batch))
        states.append(hidden[-(len(second.ids) - 1 - batch.prefix_length) :][-4:])
    torch.testing.assert_close(*states, rtol=1e-4, atol=1e-5)


def test_trap_12_batched_greedy_generation_is_one_by_one(case: Case) -> None:
    prompts = [e.prompt_ids for e in case.encoded()]
    settings = SamplingSettings(max_new_tokens=8)
    together = [r.ids for r in Engine(case.model, case.tokenizer, max_rows=3).generate(prompts, settings)]
    assert together == [Engine(case.model, case.tokenizer).generate([p], settings)[0].ids for p in prompts]


def test_the_engine_in_bf16_has_the_numbers_of_autocast(case: Case) -> None:
    ids = torch.tensor([case.encoded()[6].ids.tolist()])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        wanted = case.model.hidden_states(ids).float()
    with torch.no_grad(), BF16Weights(case.model).in_use():
        found = case.model.hidden_states(ids).float()
    assert (found - wanted).norm() / wanted.norm() < 0.02
    prompts = [e.prompt_ids for e in case.encoded()]
    engine = Engine(case.model, case.tokenizer, max_rows=3, make_weights=BF16Weights)
    written = engine.generate(prompts, SamplingSettings(max_new_tokens=8))
    assert all(r.finish_reason in ("stop", "length") for r in written)
    with torch.no_grad():
        assert case.model.hidden_states(ids).dtype == torch.float32, "the model is left as it was"


def test_trap_13_what_is_saved_comes_back(case: Case, tmp_path: Path) -> None:
    model = copy.deepcopy(case.model)
    if any("lora_" in name for name, _ in model.named_parameters()):
        pytest.skip("an adapter is merged or kept apart: tests/hf/test_bundle.py")
    greedy = {"max_new_tokens": 9, "temperature": 0.0, "top_k": None, "top_p": None, "repetition_penalty": 1.0}
    save_bundle(tmp_path / "bundle", model, case.tokenizer, case.template, greedy, {})
    ids = torch.arange(12)[None]
    again = open_model(tmp_path / "bundle").model.eval()
    with torch.no_grad():
        assert torch.equal(
            again.hidden_states(ids) @ again.head_weight.T, model.hidden_states(ids) @ model.head_weight.T
        )
    assert again.n_parameters == model.n_parameters


def test_traps_8_11_and_14_evaluation_sees_every_example_once_whatever_the_batch(case: Case, tmp_path: Path) -> None:
    found, ids = [], []
    for size, layout in ((1, "padded"), (3, "packed"), (50, "padded")):
        data = InstructionData(
            DemoSource(30), case.template, case.tokenizer, tmp_path, **settings(max_length=LENGTH, seed=1, batch_size=size,
            split={"train": 16, "val": 7, "test": 7}, layout=layout, shared_prefix=layout == "packed"),
        )  # fmt: skip
        data.prepare_data()
        data.setup()
        total, n = 0.0, 0
        seen: list[int] = []
        loader = data.val_dataloader()
        for batch in loader[0] if isinstance(loader, list) else loader:
            seen += batch.example_ids.tolist()
            with torch.no_grad():
                states = case.model.hidden_states(
                    batch.input_ids, batch.position_ids, layout_of(batch), batch.loss_index
                )
            head = case.model.head_weight.detach()
            total += float(summed_cross_entropy(states, head, batch.targets, batch.loss_weights))
            n += batch.n_supervised
        found.append(total / n)
        ids.append(sorted(seen))
        assert ids[-1] == sorted(data.split.val.tolist())
    assert found == pytest.approx([found[0]] * 3, rel=1e-5) and ids[0] == ids[1] == ids[2]
