"""Forgetting: the loss of general text is that of its tokens, paired with the base's."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from instruct_lit.core.data.tokenizer import GPT2Tokenizer
from instruct_lit.core.model.gpt import GPT
from instruct_lit.errors import ConfigError
from instruct_lit.evaluation.forgetting import as_metrics, change, general_texts, text_losses, verdict


def test_the_texts_are_fixed_and_those_of_nano_are_of_its_kind(tmp_path: Path) -> None:
    shipped = general_texts(None, 64)
    assert len(shipped) == 32 and len(set(shipped)) == 32 and all(30 < len(text.split()) < 90 for text in shipped)
    nano = general_texts(None, 64, of_nano=True)
    assert len(nano) == 64 and nano == general_texts(None, 64, of_nano=True) and not set(nano) & set(shipped)
    file = tmp_path / "mine.txt"
    file.write_text("one\nand more\n\n \ntwo\n\n\nthree")
    assert general_texts(file, 2, of_nano=True) == ["one\nand more", "two"]
    for content, message in ((b" \n", "it has no text"), (b"\xff\xfe", "cannot be read as UTF-8")):
        file.write_bytes(content)
        with pytest.raises(ConfigError, match=message):
            general_texts(file, 2)


def test_the_losses_are_those_of_every_token_after_an_end_of_text(tiny_model: GPT, tokenizer: GPT2Tokenizer) -> None:
    texts = ["Most rivers begin as something easy to overlook.", "a <|endoftext|> in a text", "x " * 900]
    state = torch.get_rng_state()
    found = text_losses(tiny_model, tokenizer, texts)
    assert torch.equal(state, torch.get_rng_state())
    for (loss, n), text in zip(found, texts, strict=True):
        ids = torch.tensor([tokenizer.eot_id, *tokenizer.encode(text)][: tiny_model.config.context_length + 1])
        with torch.no_grad():
            logits = tiny_model.hidden_states(ids[None, :-1])[0] @ tiny_model.head_weight.T
        assert n == len(ids) - 1 and loss == pytest.approx(float(F.cross_entropy(logits, ids[1:])), rel=1e-4)


def test_the_change_is_paired_and_weighted_by_tokens() -> None:
    before = [(1.0 + i / 10, 10 + i) for i in range(12)]
    after = [(loss + 0.5 + (i % 2) / 100, n) for i, (loss, n) in enumerate(before)]
    found = change("general/loss", after, before)
    weights = [n for _, n in after]
    expected = np.average([a - b for (a, _), (b, _) in zip(after, before, strict=True)], weights=weights)
    assert found["change"]["mean"] == pytest.approx(expected)
    # Paired: the interval is that of the differences, far narrower than those of the means.
    assert 0.5 <= found["change"]["low"] < found["change"]["high"] <= 0.511
    assert found["after"]["high"] - found["after"]["low"] > 0.3
    assert found["verdict"] == "lost"
    metrics = as_metrics(found)
    assert metrics["general/loss"] - metrics["base/general/loss"] == pytest.approx(metrics["general/loss_change"])
    assert set(as_metrics(change("general/loss", after, None))) == {"general/loss"}
    few = as_metrics(change("general/loss", after[:9], before[:9]))  # too few texts for an interval
    assert set(few) == {"general/loss", "base/general/loss", "general/loss_change"}


def test_a_change_is_a_gain_or_a_loss_only_if_it_is_clear() -> None:
    up, down, unclear = ({"low": low, "high": high} for low, high in ((0.1, 0.2), (-0.2, -0.1), (-0.1, 0.2)))
    assert [verdict("exact_match", c) for c in (up, down, unclear)] == ["gained", "lost", "no clear difference"]
    assert (
        [verdict("general/loss", c) for c in (up, down)]
        == [verdict("looping", c) for c in (up, down)]
        == ["lost", "gained"]
    )
    assert verdict("length_ratio", up) == verdict("exact_match", {"low": None, "high": None}) == ""
