"""The decoder: batched generation with a key-value cache and continuous batching.

Prompts wait in a queue. As rows become free, waiting prompts are prefilled together (their common prefix is computed
once) and join the batch; a finished row leaves it and the last one takes its place, so the batch is always dense.
"""

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from instruct_lit.core.data.tokenizer import Tokenizer, n_shared
from instruct_lit.core.generation.request import FinishReason, Hook, Request
from instruct_lit.core.generation.sampling import SamplingSettings, choose
from instruct_lit.core.model.attention import Decode, KeyValueCache, Prefill
from instruct_lit.core.model.causal import CausalLM, capped
from instruct_lit.errors import DataError


class WeightStore(Protocol):
    """Copies of a model's weights in `dtype`, with which it computes inside `in_use`; `head`: states to logits."""

    dtype: torch.dtype

    def __init__(self, model: CausalLM) -> None: ...
    def in_use(self) -> AbstractContextManager[None]: ...
    def head(self, hidden: Tensor) -> Tensor: ...


DecodeLoop = Callable[[Sequence[Request]], list[list[int]]]  # several tokens for each request, request r in row r
# Makes a loop for a model, the copies of its weights, its end-of-text and a cache; None where it does not support them.
MakeLoop = Callable[[CausalLM, WeightStore | None, int, KeyValueCache], DecodeLoop | None]
DECODE_LOOPS: list[MakeLoop] = []  # `instruct_lit.accel.install` registers one


class Engine:
    """Generates with a causal model, at most `max_rows` responses at the same time.

    `generate` answers a list of prompts; `prepare`, `enqueue`, `step` and `cancel` serve concurrent callers. The model
    is used in evaluation mode, its training mode is restored. Rows that may become too long for the model's attention
    layouts are read with its own cache or anew for every token: slower, with the same result. `make_weights` copies the
    weights at the first step. Without hooks, rows are decoded by the first of `make_loops` that supports them.
    """

    def __init__(
        self, model: CausalLM, tokenizer: Tokenizer, max_rows: int = 32, make_weights: type[WeightStore] | None = None,
        make_loops: Sequence[MakeLoop] = DECODE_LOOPS,
    ) -> None:  # fmt: skip
        self.model, self.tokenizer, self.max_rows = model, tokenizer, max_rows
        self.context_length = model.config.context_length
        self._waiting: deque[Request] = deque()
        self._active: list[Request] = []  # row r of the cache belongs to _active[r]
        self._cache: KeyValueCache | None = None
        self._make_weights, self._make_loops = make_weights, make_loops
        self._weights: WeightStore | None = None
        self._loop: DecodeLoop | None = None
        self._recomputes = False  # until the batch is empty, rows are computed without the cache
        self._own_cache: Callable[[Sequence[Request]], Tensor] | None = None  # of the model

    @property
    def dtype(self) -> torch.dtype | None:
        """The precision of the copies of the weights; None for the model's own weights."""
        return None if self._make_weights is None else self._make_weights.dtype

    def prepare(
        self, prompt_ids: Sequence[int], settings: SamplingSettings | None = None, hook: Hook | None = None
    ) -> Request:
        """Create a request, in any thread; with `max_new_tokens=0` the prompt is only read.

        Raises: DataError for a prompt that is empty, without room for a token in the model's context, or of other ids.
        """
        settings = settings or SamplingSettings()
        longest = self.context_length - min(1, settings.max_new_tokens)
        if not 0 < len(prompt_ids) <= longest:
            limit = "the model's context" + (" minus one token" if longest < self.context_length else "")
            raise DataError(f"a prompt has {len(prompt_ids)} tokens; allowed are 1 to {longest}, {limit}")
        if max(prompt_ids) >= (n_vocab := self.model.head_weight.shape[0]) or min(prompt_ids) < 0:
            raise DataError(f"a prompt has ids of no token; token ids are between 0 and {n_vocab - 1}")
        return Request(list(prompt_ids), settings, hook)

    def enqueue(self, request: Request) -> Request:
        """Queue a request and return it."""
        self._waiting.append(request)
        return request

    @torch.inference_mode()  # rows of the cache move
    def cancel(self, request: Request) -> None:
        """Remove a waiting or active request; its text so far stays readable."""
        if request in self._waiting:
            self._waiting.remove(request)
            request.finish_reason = "cancelled"
        elif request in self._active:
            self._finish(request, "cancelled")

    def clear(self) -> None:
        """Cancel every request and drop the cache and the copies of the weights, for example after a failed step."""
        for request in [*self._waiting, *self._active]:
            request.finish_reason = "cancelled"
        self._waiting.clear()
        self._active.clear()
        self._cache, self._loop, self._weights, self._own_cache = None, None, None, None

    @property
    def n_active(self) -> int:
        """Number of requests in the batch."""
        return len(self._active)

    @property
    def n_unfinished(self) -> int:
        """Number of requests that are waiting or in the batch."""
        return len(self._waiting) + len(self._active)

    @torch.inference_mode()
    def step(self) -> list[Request]:
        """Prefill waiting prompts if rows are free, otherwise generate tokens in every row; return these requests.

        A request whose `finish_reason` is set has left the batch.
        """
        if self._make_weights is not None and self._weights is None:
            self._weights = self._make_weights(self.model)
        was_training = self.model.training
        self.model.eval()
        try:
            with nullcontext() if self._weights is None else self._weights.in_use():
                return self._admit() or self._decode()
        finally:
            self.model.train(was_training)

    def generate(
        self, prompts: Sequence[Sequence[int]], settings: SamplingSettings | Sequence[SamplingSettings] | None = None,
        on_finished: Callable[[Request], None] | None = None,
    ) -> list[Request]:  # fmt: skip
        """Generate a response to each prompt and return the requests in the order of the prompts.

        `settings` are for all prompts or one for each; `on_finished` is called with each finished request.
        """
        each = settings if isinstance(settings, Sequence) else [settings] * len(prompts)
        requests = [self.prepare(prompt, setting) for prompt, setting in zip(prompts, each, strict=True)]
        for number, request in enumerate(requests):
            request.number = number
            self.enqueue(request)
        try:
            while self.n_unfinished:
                for request in self.step():
                    if request.finish_reason is not None and on_finished is not None:
                        on_finished(request)
        finally:  # after an error or Ctrl-C the next call begins anew
            if self.n_unfinished:
                self.clear()
        return requests

    def _admit(self) -> list[Request]:
        """Prefill waiting prompts into free rows and choose their first tokens."""
        n_free = self.max_rows - len(self._active)
        # A prefill reads all weights once, however few its prompts: wait until several rows are free.
        if not self._waiting or n_free < min(len(self._waiting), max(1, self.max_rows // 8)):
            return []
        new = [self._waiting.popleft() for _ in range(min(n_free, len(self._waiting)))]
        first_row = len(self._active)
        longest = max(min(len(r.prompt_ids) + r.settings.max_new_tokens, self.context_length) for r in new)
        self._recomputes = longest > self.model.layout_length or (self._recomputes and first_row > 0)
        self._active += new
        if self._recomputes:
            return self._recompute(new)
        cache = self._cache_for(new)
        prompts = [request.prompt_ids for request in new]
        n_prefix = n_shared(prompts, n_own=1)
        lengths = [len(prompt) - n_prefix for prompt in prompts]
        flat = prompts[0][:n_prefix] + [i for prompt in prompts for i in prompt[n_prefix:]]
        positions = list(range(n_prefix)) + [p for prompt in prompts for p in range(n_prefix, len(prompt))]
        last = torch.tensor(lengths, device=cache.device).cumsum(0) + n_prefix - 1
        all_states = any(request.hook and request.hook.reads_prompt for request in new)
        ids, places = (torch.tensor(numbers, device=cache.device) for numbers in (flat, positions))
        layout = Prefill(cache, first_row, lengths, n_prefix)
        hidden = self.model.hidden_states(ids, places, layout, None if all_states else last)
        if all_states:
            for request, length, end in zip(new, lengths, (last + 1).tolist(), strict=True):
                if request.hook and request.hook.reads_prompt:
                    states = torch.cat([hidden[:n_prefix], hidden[end - length : end]])
                    request.hook.on_prompt(request.prompt_ids, states, self.model)
            hidden = hidden[last]
        return self._append_tokens(hidden, new)

    def _decode(self) -> list[Request]:
        """Compute the last token of every row and choose the next, or several by the loop."""
        requests = list(self._active)
        if not requests:
            return []
        if self._recomputes:
            return self._recompute(requests)
        assert self._cache is not None
        if self._loop is not None and not any(request.hook for request in requests):
            return self._extend(requests, self._loop(requests))
        layout = Decode(self._cache, [request.n_tokens - 1 for request in requests])
        ids = torch.tensor([request.ids[-1] for request in requests], device=layout.lengths.device)
        hidden = self.model.hidden_states(ids[:, None], layout.lengths[:, None], layout)
        return self._append_tokens(hidden[:, 0], requests)

    def _recompute(self, requests: list[Request]) -> list[Request]:
        """Choose the next tokens with the model's own cache, or by whole rows, prompt and response, without one."""
        own = self._own_cache = self._own_cache or self.model.own_cache()
        if own and not any(r.hook and r.hook.reads_prompt and not r.ids for r in requests):
            return self._append_tokens(own(requests), requests)
        texts = [torch.tensor(r.prompt_ids + r.ids, device=self.model.head_weight.device) for r in requests]
        # No token of the text sees the padding on the right.
        hidden = self.model.hidden_states(torch.nn.utils.rnn.pad_sequence(texts, batch_first=True))
        for request, states in zip(requests, hidden, strict=True):
            if request.hook and request.hook.reads_prompt and not request.ids:
                request.hook.on_prompt(request.prompt_ids, states[: request.n_tokens], self.model)
        last = torch.stack([states[len(text) - 1] for text, states in zip(texts, hidden, strict=True)])
        return self._append_tokens(last, requests)

    def _append_tokens(self, hidden: Tensor, requests: list[Request]) -> list[Request]:
        """Choose a token for each request from its last hidden state, `(R, C)` of all, and remove finished requests."""
        logits = logits_of(hidden, self.model, self._weights)
        hooked = [(row, request.hook) for row, request in enumerate(requests) if request.hook]
        allowed = logits.clone() if hooked else logits
        for row, hook in hooked:
            allowed[row] = hook.limit(requests[row].ids, logits[row])
        settings = [request.settings for request in requests]
        seen = [r.prompt_ids + r.ids if r.settings.repetition_penalty != 1 else () for r in requests]
        chosen = choose(allowed, settings, [len(request.ids) for request in requests], seen).tolist()
        for row, hook in hooked:
            hook.on_token(chosen[row], logits[row])
        return self._extend(requests, [[token] for token in chosen])

    def _extend(self, requests: list[Request], tokens: list[list[int]]) -> list[Request]:
        # From the last row on: a finished row is not moved into the place of another.
        for request, chosen in reversed(list(zip(requests, tokens, strict=True))):
            new = [self.tokenizer.eot_id if token in self.model.end_ids else token for token in chosen]
            if (reason := request.extend(new, self.tokenizer, self.context_length)) is not None:
                self._finish(request, reason)
        return requests

    def _finish(self, request: Request, reason: FinishReason) -> None:
        """Remove a request from the batch; the last row takes its place."""
        request.finish_reason = reason
        row, last = self._active.index(request), self._active.pop()
        if last is not request:
            self._active[row] = last
            if self._cache is not None:
                self._cache.move(len(self._active), row, last.n_tokens)

    def _cache_for(self, new: list[Request]) -> KeyValueCache:
        """The cache, reallocated if the new requests may become longer than its rows."""
        longest = max(len(r.prompt_ids) + r.settings.max_new_tokens for r in [*new, *self._waiting])
        n_tokens = min(longest, self.context_length)
        old, weight = self._cache, self.model.head_weight
        if old is not None and old.n_tokens >= n_tokens:
            return old
        new_cache = KeyValueCache(self.model.config, self.max_rows, n_tokens, self.dtype or weight.dtype, weight.device)
        for new_part, part in zip(new_cache.tensors, old.tensors if old else (), strict=False):
            new_part[:, :, : part.shape[2]] = part
        loops = (make(self.model, self._weights, self.tokenizer.eot_id, new_cache) for make in self._make_loops)
        self._cache, self._loop = new_cache, next((loop for loop in loops if loop is not None), None)
        return new_cache


def logits_of(hidden: Tensor, model: CausalLM, weights: WeightStore | None) -> Tensor:
    """The logits `(R, V)` of hidden states `(R, C)`."""
    logits = F.linear(hidden, model.head_weight) if weights is None else weights.head(hidden)
    return logits if model.logit_cap is None else capped(logits, model.logit_cap)
