"""Probabilities after temperature, top-k and top-p by hand; draws that belong to the request."""

import math

import pytest
import torch

from instruct_lit.core.generation.sampling import SamplingSettings, choose, draws_of, limits_of, nucleus
from instruct_lit.errors import ConfigError

LOGITS = torch.tensor([[0.5, 0.25, 0.15, 0.1]]).log()


def probabilities(logits: torch.Tensor, *settings: SamplingSettings) -> torch.Tensor:
    return nucleus(logits, *limits_of(settings, logits.shape[-1], logits.device))


def chosen(logits: torch.Tensor, settings: SamplingSettings, seen: tuple = (), n_chosen: int = 0) -> int:
    return int(choose(logits, [settings], [n_chosen], [seen]))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"temperature": 1.0}, [0.5, 0.25, 0.15, 0.1]),
        ({"temperature": 0.5}, [x / 0.345 for x in (0.25, 0.0625, 0.0225, 0.01)]),
        ({"temperature": 1.0, "top_k": 2}, [2 / 3, 1 / 3, 0, 0]),
        ({"temperature": 1.0, "top_k": 99}, [0.5, 0.25, 0.15, 0.1]),
        ({"temperature": 1.0, "top_p": 0.5}, [1, 0, 0, 0]),
        ({"temperature": 1.0, "top_p": 0.7}, [2 / 3, 1 / 3, 0, 0]),
        ({"temperature": 1.0, "top_p": 1.0}, [0.5, 0.25, 0.15, 0.1]),
        ({"temperature": 1.0, "top_k": 3, "top_p": 0.6}, [2 / 3, 1 / 3, 0, 0]),  # 0.5 / 0.9 is below 0.6
        ({"temperature": 1.0, "top_k": 3, "top_p": 0.5}, [1, 0, 0, 0]),  # and above 0.5
    ],
)
def test_probabilities_by_hand(settings: dict, expected: list[float]) -> None:
    torch.testing.assert_close(
        probabilities(LOGITS, SamplingSettings(**settings)), torch.tensor([expected], dtype=torch.float32)
    )


def test_of_equal_tokens_at_the_cut_the_lower_ids_stay() -> None:
    kept = probabilities(torch.zeros(1, 4), SamplingSettings(temperature=1.0, top_k=2))
    assert kept.tolist() == [[0.5, 0.5, 0, 0]]


def test_the_repetition_penalty_by_hand() -> None:
    logits = torch.tensor([[2.0, 1.9, -1.0]])
    greedy = SamplingSettings(repetition_penalty=1.2)
    assert chosen(logits, greedy, (0,)) == 1  # 2.0 / 1.2 < 1.9
    assert chosen(logits, SamplingSettings(repetition_penalty=2.0), (0,)) == 1
    assert chosen(logits, SamplingSettings()) == 0
    assert chosen(torch.tensor([[-1.0, -1.1]]), greedy, (0,)) == 1  # -1.0 · 1.2 < -1.1
    for small, next_one in ((0.5, 0.45), (-0.5, -0.55)):  # 0.5 / 1.2 < 0.45, -0.5 · 1.2 < -0.55
        assert chosen(torch.tensor([[small, next_one]]), greedy, (0,)) == 1


def test_draws_follow_the_probabilities() -> None:
    counts = torch.zeros(4)
    for seed in range(2000):
        counts[chosen(LOGITS, SamplingSettings(temperature=1.0, seed=seed))] += 1
    torch.testing.assert_close(counts / 2000, LOGITS.exp()[0], rtol=0, atol=0.035)


def test_a_rows_draws_do_not_depend_on_its_neighbours() -> None:
    """Nor on whether they are drawn one by one."""
    settings = [SamplingSettings(temperature=1.0, seed=s) for s in (1, 2)]
    pairs = [choose(LOGITS.expand(2, -1), settings, [n, n], [(), ()]).tolist() for n in range(20)]
    assert [pair[1] for pair in pairs] == [chosen(LOGITS, settings[1], n_chosen=n) for n in range(20)]
    assert len({pair[0] for pair in pairs}) > 1
    generator = torch.Generator().manual_seed(1)
    one_by_one = [float(torch.rand((), generator=generator, dtype=torch.float64)) for _ in range(20)]
    assert draws_of(1, 0, 20).tolist() == one_by_one and draws_of(1, 7, 5).tolist() == one_by_one[7:12]


def test_a_token_without_probability_is_never_drawn() -> None:
    logits = torch.tensor([[0.0, -math.inf, -math.inf]])
    assert {chosen(logits, SamplingSettings(temperature=1.0), n_chosen=n) for n in range(50)} == {0}


def test_every_setting_out_of_its_range_is_named() -> None:
    with pytest.raises(ConfigError) as caught:
        SamplingSettings(
            max_new_tokens=-1, temperature=-1, top_k=0, top_p=1.5, repetition_penalty=0, seed=-1, stop=("",)
        )
    for name in (
        "max_new_tokens=-1",
        "temperature=-1",
        "top_k=0",
        "top_p=1.5",
        "repetition_penalty=0",
        "seed=-1",
        "stop=",
    ):
        assert f"generation.{name}" in str(caught.value)


def test_of_equal_logits_the_first_is_chosen_as_argmax_would() -> None:
    """Ties are common in half precision."""
    logits = torch.randn(20, 400, generator=torch.Generator().manual_seed(0)).round().bfloat16()
    found = choose(logits, [SamplingSettings()] * 20, [0] * 20, [()] * 20)
    assert (logits == logits.amax(-1, keepdim=True)).sum() > 40 and torch.equal(found, logits.argmax(-1))


@pytest.mark.parametrize(
    ("name", "allowed", "refused"),
    [
        ("max_new_tokens", [0], [-1]),
        ("temperature", [0.0, 1e9], [-0.1, math.inf, math.nan]),
        ("top_k", [None, 1], [0]),
        ("top_p", [None, 1e-9, 1.0], [0.0, -0.5, 1.1]),
        ("repetition_penalty", [1e-9, 1.0, 1e9], [0.0, 1e-40, 2e9, math.inf]),
        ("seed", [0, 2**63 - 1], [-1, 2**63]),
    ],
)
def test_the_ends_of_the_ranges(name: str, allowed: list, refused: list) -> None:
    for value in allowed:
        assert getattr(SamplingSettings(**{name: value}), name) == value
    for value in refused:
        with pytest.raises(ConfigError, match=f"generation.{name}={value}"):
            SamplingSettings(**{name: value})


def test_the_defaults_are_greedy() -> None:
    assert SamplingSettings() == SamplingSettings(256, 0.0, None, None, 1.0, 0, ())


def test_rows_have_settings_of_their_own() -> None:
    settings = [SamplingSettings(temperature=1.0, top_k=2), SamplingSettings(temperature=1.0, top_p=0.5)]
    found = probabilities(LOGITS.expand(2, -1), *settings)
    torch.testing.assert_close(found, torch.tensor([[2 / 3, 1 / 3, 0, 0], [1, 0, 0, 0]]))
    with pytest.raises(ValueError, match="zip"):
        choose(LOGITS, [SamplingSettings(temperature=1.0)] * 2, [0, 0], [(), ()] + [()])


def test_of_many_equal_tokens_too_the_lower_ids_stay() -> None:
    (kept,) = probabilities(torch.zeros(1, 5000), SamplingSettings(temperature=1.0, top_k=2500))
    assert kept.nonzero().squeeze(1).tolist() == list(range(2500))


@pytest.mark.parametrize(
    "settings",
    [
        SamplingSettings(temperature=1e-38),
        SamplingSettings(temperature=5e-324),
        SamplingSettings(temperature=9e-6, top_k=3),
        SamplingSettings(temperature=1.0, top_p=1e-46),
        SamplingSettings(temperature=1.0, repetition_penalty=1e-9),
        SamplingSettings(temperature=1.0, top_p=5e-324, repetition_penalty=1e9),
    ],
)
def test_extreme_settings_choose_what_their_limit_does(settings: SamplingSettings) -> None:
    """Divisions that overflow must not end in NaN, which would choose token 0 (`!` of GPT-2)."""
    logits = torch.tensor([[0.0, -3.0, 2.0, 4.0, 1.0]])
    assert chosen(logits, settings, (3,) if settings.repetition_penalty < 1 else (1,)) == 3


def test_infinite_logits_share_the_probability() -> None:
    logits = torch.tensor([[0.0, math.inf, 1.0, math.inf], [0.0, 3e38, 1.0, -3e38]])
    hot = SamplingSettings(temperature=0.5, top_p=0.9)
    assert probabilities(logits, hot, hot).tolist() == [[0.0, 0.5, 0.0, 0.5], [0.0, 1.0, 0.0, 0.0]]
    drawn = {chosen(logits[:1], SamplingSettings(temperature=1.0, seed=s)) for s in range(9)}
    assert drawn == {1, 3}
