"""The first product of a shape in a thread of its own, with the same numbers."""

import threading
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from instruct_lit.accel import kernel_heap
from instruct_lit.accel.kernel_heap import product


@pytest.fixture
def computed_in(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(kernel_heap, "_known", set())
    return []


def test_only_the_first_product_of_its_shapes_is_computed_in_the_second_thread(computed_in: list[str]) -> None:
    def matmul(*factors: Tensor, **options: Any) -> Tensor:
        computed_in.append(threading.current_thread().name.split("_")[0])
        return torch.mm(*factors, **options)

    x, y, wide = torch.randn(3, 4), torch.randn(4, 5), torch.randn(4, 6)
    for factors in ((x, y), (x, y), (x, wide), (x, y)):
        assert product(matmul, *factors).equal(x @ factors[1])
    assert computed_in == ["kernels", "MainThread", "kernels", "MainThread"]
    assert kernel_heap.kernel_bytes() == 2 * kernel_heap.KERNEL_BYTES


def test_results_in_place_and_errors_come_back(computed_in: list[str]) -> None:
    x, weight, total = torch.randn(3, 4), torch.randn(5, 4), torch.ones(3, 5)
    assert product(F.linear, x, weight, None).equal(F.linear(x, weight))
    assert product(Tensor.addmm_, total, x, weight.t()) is total and total.equal(1 + x @ weight.t())
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        product(torch.mm, x, weight)


class Shard(Tensor):
    """A tensor of another kind, as those of sharded models."""


def test_a_tensor_of_another_kind_stays_in_its_thread(computed_in: list[str]) -> None:
    def matmul(*factors: Tensor) -> Tensor:
        computed_in.append(threading.current_thread().name.split("_")[0])
        return torch.mm(*factors)

    x, weight = torch.randn(3, 4), torch.randn(4, 5)
    product(matmul, x, weight.as_subclass(Shard))
    product(matmul, x, torch.nn.Parameter(weight))
    assert computed_in == ["MainThread", "kernels"]
