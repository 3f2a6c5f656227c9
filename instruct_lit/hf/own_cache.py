"""Answers of models that our attention layouts do not support, by transformers' own cache instead of none.

Prompts that are read together, a cohort, share one cache and are padded on the left in it. Each cohort is a pass of its
own, so all texts are read again, as one, once the passes saved would have paid for it. Whether a model then gives the
states of each text alone is measured on a few tokens when it first answers.

Shapes: R rows, T tokens of the longest row, C hidden width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from instruct_lit.core.generation.request import Request
from instruct_lit.core.generation.sampling import SamplingSettings
from instruct_lit.hf.probe import difference

States = Callable[..., Tensor]  # from the arguments of transformers' model to its last hidden states `(R, T, C)`
WORTH_ON_CPU, WORTH_ON_GPU = 64, 4096  # tokens that are read in about the time of a pass for one token
CACHE_NAMES = ("cache", "cache_params", "past_key_values")  # arguments of a model, the newest first
LENGTHS = (3, 7, 5)  # of the texts that a model is measured with


@dataclass
class _Cohort:
    """Requests that were read together: row r of `cache` and of `mask` `(R, T)` is the text of `requests[r]`."""

    requests: list[Request]
    mask: Tensor
    cache: Any
    is_padded: bool


class OwnCache:
    """From requests to their last hidden states `(R, C)`: what is cached of a text is not read again.

    Args:
        states: computes states with a cache and a mask of padding.
        body: the model of transformers without its head.
    """

    def __init__(self, states: States, body: Any) -> None:
        self.states, self._config, self._embedding = states, body.config, body.get_input_embeddings()
        takes = signature(body.forward).parameters
        self._name = next((name for name in CACHE_NAMES if name in takes), CACHE_NAMES[-1])
        self._has_positions = "position_ids" in takes
        self._cohorts: list[_Cohort] = []
        self._n_extra = 0  # passes that one cohort of all requests would have saved so far

    def __call__(self, requests: Sequence[Request]) -> Tensor:
        """Requests that were read before must come together, with one token more; finished ones are forgotten."""
        self._forget_finished()
        found: dict[int, Tensor] = {}
        known = [cohort for cohort in self._cohorts if cohort.requests[0] in requests]
        self._n_extra += max(0, len(known) - 1)
        worth = WORTH_ON_CPU if self._embedding.weight.device.type == "cpu" else WORTH_ON_GPU
        if len(known) > 1 and self._n_extra * worth >= sum(request.n_tokens for request in requests):
            self._cohorts, known, self._n_extra = [], [], 0
        for cohort in known:
            newest = torch.tensor([[request.ids[-1]] for request in cohort.requests], device=cohort.mask.device)
            cohort.mask = torch.nn.functional.pad(cohort.mask, (0, 1), value=1)
            found |= self._read(cohort, newest)
        new = [request for request in requests if id(request) not in found]
        if new:
            found |= self._read_new(new)
        return torch.stack([found[id(request)] for request in requests])

    def _read_new(self, requests: list[Request]) -> dict[int, Tensor]:
        from transformers import DynamicCache

        device = self._embedding.weight.device
        texts = [torch.tensor(request.prompt_ids + request.ids, device=device) for request in requests]
        pad = torch.nn.utils.rnn.pad_sequence
        ids = pad(texts, batch_first=True, padding_side="left")
        mask = pad([torch.ones_like(text) for text in texts], batch_first=True, padding_side="left")
        is_padded = len({len(text) for text in texts}) > 1
        self._cohorts.append(_Cohort(requests, mask, DynamicCache(config=self._config), is_padded))
        return self._read(self._cohorts[-1], ids)

    def _read(self, cohort: _Cohort, ids: Tensor) -> dict[int, Tensor]:
        """The last state of each request, by its identity, after the tokens `(R, T)`."""
        mask = cohort.mask if cohort.is_padded else None
        inputs: dict[str, Any] = {"attention_mask": mask, self._name: cohort.cache, "use_cache": True}
        if self._has_positions:
            inputs["position_ids"] = (cohort.mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        states = self.states(input_ids=ids, **inputs)
        return {id(request): state[-1] for request, state in zip(cohort.requests, states, strict=True)}

    def _forget_finished(self) -> None:
        for cohort in self._cohorts:
            rows = [n for n, request in enumerate(cohort.requests) if request.finish_reason is None]
            if 0 < len(rows) < len(cohort.requests):
                index = torch.tensor(rows, device=cohort.mask.device)
                cohort.cache.reorder_cache(index)
                cohort.mask = cohort.mask[index]
            cohort.requests = [cohort.requests[n] for n in rows]
        self._cohorts = [cohort for cohort in self._cohorts if cohort.requests]


@torch.no_grad()
def is_exact(cache: OwnCache, n_vocab: int, tolerance: float) -> bool:
    """Whether texts side by side, of which one ends, get the states that each gets alone without a cache."""
    generator = torch.Generator().manual_seed(0)
    texts = [torch.randint(0, n_vocab, (n,), generator=generator).tolist() for n in LENGTHS]
    requests = [Request(text[:-2], SamplingSettings()) for text in texts]
    try:
        for n_more in range(3):
            found = cache(requests)
            for request, state in zip(requests, found, strict=True):
                alone = cache.states(input_ids=torch.tensor([request.prompt_ids + request.ids], device=state.device))
                if not difference(state, alone[0, -1]) <= tolerance:
                    return False
            if n_more == 1:
                requests.pop(1).finish_reason = "stop"
            for request in requests:
                request.ids.append(texts[0][n_more])
    except torch.OutOfMemoryError:
        raise
    except Exception:  # unknown code may reject the arguments in any way
        return False
    for request in requests:
        request.finish_reason = "stop"
    return True
