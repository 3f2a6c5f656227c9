"""GPT-2 itself: what sees what, its initialisation, dropout, checkpointed activations, its sizes."""

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from instruct_lit.core.model.gpt import GPT, INIT_STD, GPTConfig

TINY = GPTConfig(n_vocab=97, context_length=32, d_model=48, n_layers=3, n_heads=4)


def relative(found: Tensor, wanted: Tensor) -> float:
    return ((found - wanted).norm() / wanted.norm()).item()


@pytest.fixture
def model() -> GPT:
    model = GPT(TINY)
    model.init_weights(seed=1)
    return model.eval()


@pytest.fixture
def input_ids() -> Tensor:
    return torch.randint(TINY.n_vocab, (3, 11), generator=torch.Generator().manual_seed(2))


def test_shapes_of_rows_and_of_a_flat_batch(model: GPT, input_ids: Tensor) -> None:
    assert model(input_ids).shape == (3, 11, 97)
    assert model.hidden_states(input_ids).shape == (3, 11, 48)
    assert model(input_ids[0]).shape == (11, 97)
    torch.testing.assert_close(model(input_ids)[0], model(input_ids[0]))


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("half", [False, True])
def test_states_at_an_index_are_those_of_all_with_their_gradients(
    model: GPT, input_ids: Tensor, checkpointing: bool, half: bool, device: str
) -> None:
    index = torch.tensor([32, 4, 4, 20, *[9] * 600]).to(device)  # a GPU's sums in bf16 stop at 256 equal terms
    weights = torch.randn(len(index), 48, generator=torch.Generator().manual_seed(5)).abs().to(device)
    found = []
    for at in (None, index):
        trained = GPT(TINY, activation_checkpointing=checkpointing).train().to(device)
        trained.load_state_dict(model.state_dict())
        with torch.autocast(device, torch.bfloat16, enabled=half):
            states = trained.hidden_states(input_ids.to(device), index=at)
        states = states if at is not None else states.flatten(0, 1)[index]
        (states * weights).sum().backward()
        found.append((states, [p.grad.to_dense() for p in trained.parameters() if p.grad is not None]))
    (wanted, gradients), (states, others) = found
    tolerance = 2e-2 if half else 1e-4
    assert states.shape == (604, 48) and relative(states, wanted) < tolerance
    assert len(gradients) == len(others) == len(list(model.parameters()))
    for gradient, other in zip(gradients, others, strict=True):
        assert relative(other, gradient) < tolerance


def test_the_last_layer_goes_on_with_the_tokens_at_the_index_alone(model: GPT, input_ids: Tensor) -> None:
    seen: list[int] = []
    for block in model.blocks:
        block.mlp.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].numel() // 48))
    model.hidden_states(input_ids, index=torch.tensor([3, 30]))
    assert seen == [33, 33, 2]


def test_a_token_sees_itself_and_what_stands_before_it(model: GPT, input_ids: Tensor) -> None:
    changed = input_ids.clone()
    changed[:, 6] = (changed[:, 6] + 1) % TINY.n_vocab
    before, after = model(input_ids), model(changed)
    torch.testing.assert_close(after[:, :6], before[:, :6], rtol=0, atol=1e-6)
    differs = (after - before).abs().amax(-1) > 1e-4
    assert differs[:, 6:].all()


def test_rows_do_not_see_each_other(model: GPT, input_ids: Tensor) -> None:
    for row in range(3):
        torch.testing.assert_close(model(input_ids)[row], model(input_ids[row : row + 1])[0], rtol=0, atol=1e-6)


def test_positions_count_from_zero_unless_given(model: GPT, input_ids: Tensor) -> None:
    counted = model(input_ids)
    torch.testing.assert_close(model(input_ids, torch.arange(11)), counted)
    assert not torch.allclose(model(input_ids, torch.arange(11) + 1), counted, atol=1e-4)


def test_dropout_acts_in_training_alone(input_ids: Tensor, model: GPT) -> None:
    dropping = GPT(TINY, dropout=0.5)
    dropping.load_state_dict(model.state_dict())
    torch.testing.assert_close(dropping.eval()(input_ids), model(input_ids))
    dropping.train()
    assert not torch.allclose(dropping(input_ids), dropping(input_ids), atol=1e-3)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_checkpointed_activations_give_the_same_gradients(model: GPT, input_ids: Tensor, dropout: float) -> None:
    gradients = []
    for checkpointing in (False, True):
        trained = GPT(TINY, dropout, activation_checkpointing=checkpointing).train()
        trained.load_state_dict(model.state_dict())
        torch.manual_seed(3)
        trained(input_ids).square().mean().backward()
        gradients.append([parameter.grad for parameter in trained.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(checkpointed, plain)


def test_initial_weights_have_the_spread_of_gpt2(model: GPT) -> None:
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            expected = INIT_STD / (2 * TINY.n_layers) ** 0.5 if name.endswith("proj.weight") else INIT_STD
            assert parameter.std().item() == pytest.approx(expected, rel=0.06), name
            assert abs(parameter.mean().item()) < expected / 10, name
        else:
            is_scale = name.split(".")[-2] in ("ln_1", "ln_2", "ln_f") and name.endswith("weight")
            assert parameter.unique().tolist() == [1.0 if is_scale else 0.0], name


def test_initial_weights_follow_their_seed_alone(model: GPT) -> None:
    torch.manual_seed(99)
    same, other = GPT(TINY), GPT(TINY)
    same.init_weights(seed=1)
    other.init_weights(seed=2)
    assert all(torch.equal(a, b) for a, b in zip(same.parameters(), model.parameters(), strict=True))
    assert not torch.equal(other.wte.weight, model.wte.weight)


def test_the_head_is_the_token_embedding(model: GPT, input_ids: Tensor) -> None:
    assert model.head_weight is model.wte.weight
    model(input_ids).logsumexp(-1).mean().backward()
    unused = sorted(set(range(TINY.n_vocab)) - set(input_ids.flatten().tolist()))
    assert model.wte.weight.grad is not None
    assert model.wte.weight.grad[unused].abs().sum(-1).gt(0).all(), "tokens that are not in the input learn as outputs"


def test_heads_divide_the_width() -> None:
    with pytest.raises(AssertionError, match="d_model 50 is not a multiple of n_heads 4"):
        GPTConfig(d_model=50, n_heads=4)


def test_compiled_blocks_are_the_same_function_compiled_once() -> None:
    """Three layers and three lengths share the two graphs around the attention; evaluation is not compiled."""
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: object) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    compiler = functools.cache(lambda function: torch.compile(function, dynamic=True, backend=backend))
    model = GPT(GPTConfig(n_vocab=97, context_length=32, d_model=48, n_layers=3, n_heads=4)).train()
    model.init_weights(0)
    for n_tokens in (7, 12, 31):
        ids = torch.arange(n_tokens)
        model.compiler = None
        expected = model(ids)
        model.compiler = compiler
        torch.testing.assert_close(model(ids), expected, rtol=0, atol=1e-6)
    assert len(graphs) == 2
    model.eval()(torch.arange(5))
    assert len(graphs) == 2
