"""Which metrics can be compared between trials: a loss is a mean over the tokens that a trial supervises."""

from collections.abc import Iterable


def changes_loss(name: str) -> bool:
    """Whether a parameter decides which tokens a loss covers, so that losses of its values cannot be compared."""
    return name == "data.mask_prompt" or name.partition(".")[0] == "template" or "tokenizer" in name


def comparable_metric(names: Iterable[str], metric: str) -> str | None:
    """In place of a loss or perplexity, the metric that can be compared between trials that differ in `names`.

    In place of `test/loss/<set>`, which one data set of a mixture has, it is that of the whole split.
    """
    split, name = (*metric.split("/"), "")[:2]
    changing = list(filter(changes_loss, names))
    if name not in ("loss", "perplexity") or not changing:
        return None
    return f"{split}/{'bits_per_byte' if any('tokenizer' in n for n in changing) else 'response_loss'}"
