"""The batch layout of a run, decided when the model and the lengths of the data are known."""

import math
from dataclasses import dataclass, replace

from instruct_lit.core.data.batching import GROUPINGS
from instruct_lit.core.data.settings import Batching
from instruct_lit.errors import ConfigError

AUTO = "auto"  # batching.layout


@dataclass(frozen=True)
class LayoutChoice:
    """Decides whether a layout is used, by the number of inputs of the longest example.

    Padded rows without a shared prefix are exact for every model, other layouts up to `exact_length` inputs.

    Args:
        reason: why no longer ones.
        automatic: whether padded rows replace a layout that is not exact, which is an error otherwise.

    Raises:
        ConfigError: the configured layout is not exact for this model and these lengths.
    """

    exact_length: float = math.inf
    reason: str = ""
    automatic: bool = False

    def __call__(self, batching: Batching, longest: int) -> Batching:
        is_exact = longest <= self.exact_length
        limit = f"exact up to {self.exact_length} inputs" if self.exact_length else "not exact"
        facts = f"packing is {limit} for this model, since {self.reason}; " if self.reason else "exact for this model; "
        facts += f"examples have up to {longest} inputs"
        if self.automatic:
            chosen = batching if is_exact else _padded(batching)
            name = chosen.layout if chosen.grouping == "none" else f"{chosen.layout} rows grouped by {chosen.grouping}"
            print(f"batching: {name} ({facts})", flush=True)
            return chosen
        if not is_exact and (batching.layout == "packed" or batching.shared_prefix):
            shorter = f" or data.max_length={int(self.exact_length) + 1}" if self.exact_length else ""
            raise ConfigError(
                f"batching.layout={batching.layout}, batching.shared_prefix={batching.shared_prefix}: {facts}; use "
                f"batching=auto, batching=bucketed{shorter}"
            )
        return batching


def _padded(batching: Batching) -> Batching:
    """The settings with padded rows, of similar length where lengths are known beforehand."""
    grouping = "length" if batching.grouping == "none" and "length" in GROUPINGS else batching.grouping
    return replace(batching, layout="padded", shared_prefix=False, grouping=grouping, pad_to_multiple_of=1)
