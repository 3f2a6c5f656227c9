"""The one decoder: batched, cached, with rows that come and go while others are being written.

Prompts wait in a queue. As rows get free, waiting prompts are prefilled together (their common beginning is computed
once) and join the batch; a finished row leaves it and the last one takes its place, so the batch is always dense.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import count

import torch
import torch.nn.functional as F

from instruct_lit.accel.bf16_weights import BF16Weights
from instruct_lit.core.generation.request import AllowedNext, Decoder, FinishReason, Request, constrained
from instruct_lit.core.generation.sampling import Sampler, SamplingSettings
from instruct_lit.core.model.causal import CausalLM
from instruct_lit.core.model.kv_cache import Decode, KeyValueCache, Prefill
from instruct_lit.errors import DataError
from instruct_lit.suites.prefix_tree import n_common


class Engine:
    """Generates with a causal model; at most `max_rows` responses are written at the same time.

    `prepare`, `enqueue`, `step` and `cancel` serve callers with requests of their own timing, `generate` answers a
    list of prompts. The model is used in evaluation mode and left as it was. One that takes rows only reads all of a
    row anew for every token: slower, and as exact. With `dtype` bfloat16 it computes with copies of the weights in
    bf16, which are made at the first step; otherwise in the weights' own precision.
    """

    def __init__(
        self, model: CausalLM, tokenizer: Decoder, max_rows: int = 32, dtype: torch.dtype | None = None
    ) -> None:
        self.model, self.tokenizer, self.max_rows = model, tokenizer, max_rows
        self.context_length = model.config.context_length
        self._waiting: deque[Request] = deque()
        self._active: list[Request] = []  # row r of the cache belongs to _active[r]
        self._cache: KeyValueCache | None = None
        assert dtype in (None, torch.bfloat16), dtype
        self.dtype = dtype
        self._half: BF16Weights | None = None
        self._sampler = Sampler()
        self._numbers = count()

    def submit(self, prompt_ids: Sequence[int], settings: SamplingSettings | None = None) -> Request:
        """Queue a prompt; raises as `prepare` does."""
        request = self.prepare(prompt_ids, settings)
        self.enqueue(request)
        return request

    def prepare(
        self,
        prompt_ids: Sequence[int],
        settings: SamplingSettings | None = None,
        n_logprobs: int | None = None,
        of_prompt: bool = False,
        allowed_next: AllowedNext | None = None,
    ) -> Request:
        """Make a request, in any thread; the arguments after `settings` are those of `Request`.

        With `max_new_tokens=0` the prompt is only scored. Raises DataError when it is empty or leaves no room for a
        token in the model's context.
        """
        settings = settings or SamplingSettings()
        longest = self.context_length - min(1, settings.max_new_tokens)
        if not 0 < len(prompt_ids) <= longest:
            rest = ", one less than the model's context" if longest < self.context_length else ", the model's context"
            raise DataError(f"a prompt has {len(prompt_ids)} tokens; allowed are 1 to {longest}{rest}")
        return Request(next(self._numbers), list(prompt_ids), settings, n_logprobs, of_prompt, allowed_next)

    def enqueue(self, request: Request) -> None:
        """Let a prepared request wait for its turn."""
        self._waiting.append(request)

    @torch.inference_mode()  # rows of the cache move
    def cancel(self, request: Request) -> None:
        """Take a request out, wherever it is; what it has written stays readable."""
        if request in self._waiting:
            self._waiting.remove(request)
            request.finish_reason = "cancelled"
        elif request in self._active:
            self._finish(self._active.index(request), "cancelled")

    def clear(self) -> None:
        """Cancel every request and drop the cache and copies, whatever state a failed step has left them in."""
        for request in [*self._waiting, *self._active]:
            request.finish_reason = "cancelled"
        self._waiting.clear()
        self._active.clear()
        self._cache, self._half, self._sampler = None, None, Sampler()

    @property
    def n_active(self) -> int:
        """Requests that are being written."""
        return len(self._active)

    @property
    def n_unfinished(self) -> int:
        """Requests that are waiting or being written."""
        return len(self._waiting) + len(self._active)

    @torch.inference_mode()
    def step(self) -> list[Request]:
        """Prefill waiting prompts if rows are free, otherwise write one token in every row; return what has changed.

        A request whose `finish_reason` is set has left the batch.
        """
        with _evaluating(self.model), self._weights():
            return self._admit() or self._decode()

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        settings: SamplingSettings | Sequence[SamplingSettings] | None = None,
        on_finished: Callable[[Request], None] | None = None,
    ) -> list[Request]:
        """Answer all prompts and return their requests in the order of the prompts.

        `settings` are for all prompts or one for each; `on_finished` is called as each answer is complete.
        """
        each = settings if isinstance(settings, Sequence) else [settings] * len(prompts)
        requests = [self.submit(prompt, setting) for prompt, setting in zip(prompts, each, strict=True)]
        while self.n_unfinished:
            for request in self.step():
                if request.finish_reason is not None and on_finished is not None:
                    on_finished(request)
        return requests

    def stream(self, prompt: Sequence[int], settings: SamplingSettings | None = None) -> Iterator[str]:
        """Yield the response to one prompt piece by piece: whole characters, and nothing of a stop text."""
        request = self.submit(prompt, settings)
        shown = 0
        try:
            while request.finish_reason is None:
                self.step()
                text = request.settled
                if len(text) > shown:
                    yield text[shown:]
                    shown = len(text)
        finally:
            if request.finish_reason is None:
                self.cancel(request)

    def _weights(self) -> AbstractContextManager[None]:
        """The weights of the engine's precision."""
        if self.dtype is None:
            return nullcontext()
        self._half = self._half or BF16Weights(self.model)
        return self._half.in_use()

    def _admit(self) -> list[Request]:
        """Prefill waiting prompts into free rows and choose their first tokens."""
        n_free = self.max_rows - len(self._active)
        # A prefill reads all weights once, however few prompts it has: wait until some rows are free.
        if not self._waiting or n_free < min(len(self._waiting), max(1, self.max_rows // 8)):
            return []
        new = [self._waiting.popleft() for _ in range(min(n_free, len(self._waiting)))]
        rows = range(len(self._active), len(self._active) + len(new))
        self._active += new
        if self.model.no_layouts is not None:
            return self._reread(list(rows))
        cache = self._room_for(new)
        prompts = [request.prompt_ids for request in new]
        n_prefix = _common_prefix(prompts)
        lengths = [len(prompt) - n_prefix for prompt in prompts]
        flat = prompts[0][:n_prefix] + [i for prompt in prompts for i in prompt[n_prefix:]]
        positions = list(range(n_prefix)) + [p for prompt in prompts for p in range(n_prefix, len(prompt))]
        device = cache.keys.device
        last = torch.tensor(lengths, device=device).cumsum(0) + n_prefix - 1
        scores_prompts = any(request.of_prompt for request in new)
        hidden = self.model.hidden_states(
            torch.tensor(flat, device=device),
            torch.tensor(positions, device=device),
            Prefill(cache, rows.start, lengths, n_prefix),
            None if scores_prompts else last,
        )
        for request, end, length in zip(new, (last + 1).tolist(), lengths, strict=True):
            if request.of_prompt:
                own = torch.cat([hidden[:n_prefix], hidden[end - length : end]])
                request.score_prompt(own, self.model.head_weight)
        return self._write(hidden[last] if scores_prompts else hidden, list(rows))

    def _decode(self) -> list[Request]:
        """Run the last token of every row through the model and choose the next."""
        if not self._active:
            return []
        if self.model.no_layouts is not None:
            return self._reread(list(range(len(self._active))))
        assert self._cache is not None
        layout = Decode(self._cache, [request.n_tokens - 1 for request in self._active])
        ids = torch.tensor([request.ids[-1] for request in self._active], device=layout.lengths.device)
        hidden = self.model.hidden_states(ids[:, None], layout.lengths[:, None], layout)
        return self._write(hidden[:, 0], list(range(len(self._active))))

    def _reread(self, rows: list[int]) -> list[Request]:
        """Run everything of the given rows through the model, without a cache, and choose the next tokens."""
        texts = [self._active[row].prompt_ids + self._active[row].ids for row in rows]
        device = self.model.head_weight.device
        # Padding on the right is seen by no token of the text.
        ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(text, device=device) for text in texts], batch_first=True)
        last = torch.tensor([len(text) - 1 for text in texts], device=device)
        hidden = self.model.hidden_states(ids)
        for row, states in zip(rows, hidden, strict=True):
            if self._active[row].of_prompt and not self._active[row].ids:
                self._active[row].score_prompt(states, self.model.head_weight)
        return self._write(hidden[torch.arange(len(texts), device=device), last], rows)

    def _write(self, hidden: torch.Tensor, rows: list[int]) -> list[Request]:
        """Choose a token for each of the rows from their last hidden states, and let finished rows leave."""
        requests = [self._active[row] for row in rows]
        logits = F.linear(hidden, self.model.head_weight) if self._half is None else self._half.head(hidden)
        chosen = self._sampler.choose(
            constrained(logits, requests),
            [request.settings for request in requests],
            [request.number for request in requests],
            [
                request.prompt_ids + request.ids if request.settings.repetition_penalty != 1 else ()
                for request in requests
            ],
        ).tolist()
        for place in reversed(range(len(rows))):
            row, request, token = rows[place], requests[place], chosen[place]
            reason = request.append(token, self.tokenizer, self.context_length)
            request.score(token, logits[place])
            if reason is not None:
                self._finish(row, reason)
        return requests

    def _finish(self, row: int, reason: FinishReason) -> None:
        request = self._active[row]
        request.finish_reason = reason
        self._sampler.forget(request.number)
        last = self._active.pop()
        if last is not request:
            self._active[row] = last
            if self._cache is not None:
                self._cache.move(len(self._active), row, last.n_tokens)

    def _room_for(self, new: list[Request]) -> KeyValueCache:
        """The cache, made larger if the new requests may become longer than its rows."""
        wanted = max(len(r.prompt_ids) + r.settings.max_new_tokens for r in [*new, *self._waiting])
        wanted = min(wanted, self.context_length)
        old = self._cache
        if old is None or old.n_tokens < wanted:
            weight = self.model.head_weight
            rows = self.max_rows if old is None else old.n_rows
            self._cache = KeyValueCache(self.model.config, rows, wanted, self.dtype or weight.dtype, weight.device)
            if old is not None:
                for ours, theirs in ((self._cache.keys, old.keys), (self._cache.values, old.values)):
                    ours[..., : old.n_tokens, :] = theirs
        assert self._cache is not None
        return self._cache


def _common_prefix(prompts: Sequence[Sequence[int]]) -> int:
    """Number of leading tokens all prompts share; each keeps at least its last token for itself."""
    if len(prompts) == 1:
        return 0
    return min(*(n_common(prompts[0], prompt) for prompt in prompts[1:]), min(map(len, prompts)) - 1)


@contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
