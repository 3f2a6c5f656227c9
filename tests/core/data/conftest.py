"""Short encoded examples by hand."""

import numpy as np
import pytest

from instruct_lit.core.data.encode import EncodedExample


def encoded(prompt: list[int], response: list[int], index: int = 0) -> EncodedExample:
    ids = np.array([*prompt, *response], dtype=np.int64)
    return EncodedExample(index, ids, np.arange(len(ids)) >= len(prompt))


@pytest.fixture
def three() -> list[EncodedExample]:
    """Prompts that share [7, 8], responses closed by end-of-text 50256 but for the last, which was cut."""
    return [
        encoded([7, 8, 1], [11, 50256], 4),
        encoded([7, 8, 2, 3], [12, 13, 50256], 9),
        encoded([7, 8], [14], 2),
    ]
