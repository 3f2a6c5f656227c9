"""The two completion calls of OpenAI's API over the one engine, without anything of HTTP."""

from __future__ import annotations

import asyncio
import secrets
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from instruct_lit.core.generation.request import Request
from instruct_lit.core.generation.sampling import SamplingSettings
from instruct_lit.errors import InstructLitError
from instruct_lit.serving.conversation import ChatModel, example_of
from instruct_lit.serving.logprobs import of_chat, of_completion, offsets
from instruct_lit.serving.protocol import ApiError, Body, ChatBody, CompletionBody
from instruct_lit.serving.scheduler import QueueFullError, Scheduler, Update

N_COMPLETION_TOKENS = 16  # OpenAI's default of `/v1/completions`
Updates = AsyncGenerator[tuple[int, Update], None]


@dataclass
class Job:
    """A call with its prepared requests, `n` for every prompt in the prompts' order."""

    body: Body
    requests: list[Request]
    id: str
    created: int

    @property
    def is_chat(self) -> bool:
        """Which of the two calls it is."""
        return isinstance(self.body, ChatBody)

    @property
    def usage(self) -> dict[str, int]:
        """Tokens of prompts, each counted once, and of responses."""
        n_read = sum(len(request.prompt_ids) for request in self.requests[:: self.body.n or 1])
        n_written = sum(len(request.ids) for request in self.requests)
        return {"prompt_tokens": n_read, "completion_tokens": n_written, "total_tokens": n_read + n_written}


class Service:
    """Answers calls; what a request leaves open is taken from `defaults`, the settings the server was started with."""

    def __init__(self, speaker: ChatModel, scheduler: Scheduler, defaults: SamplingSettings, timeout_s: float) -> None:
        self.speaker, self.scheduler, self.defaults, self.timeout_s = speaker, scheduler, defaults, timeout_s
        self.started_at = int(time.time())

    def models(self) -> dict[str, Any]:
        """The body of `/v1/models`."""
        return {"object": "list", "data": [self.model()]}

    def model(self) -> dict[str, Any]:
        """The one model, with its context as vLLM tells it."""
        return {
            "id": self.speaker.name, "object": "model", "created": self.started_at, "owned_by": "instruct-lit",
            "max_model_len": self.speaker.context_length,
        }  # fmt: skip

    def prepare(self, body: Body) -> Job:
        """Check a body against the model and make its requests. Raises ApiError. Slow for long prompts."""
        if body.model != self.speaker.name:
            raise ApiError(
                404, f"The model {body.model!r:.100} does not exist; there is {self.speaker.name!r}",
                param="model", code="model_not_found",
            )  # fmt: skip
        body.check()
        assert isinstance(body, ChatBody | CompletionBody)
        try:
            requests = self._requests_of_chat(body) if isinstance(body, ChatBody) else self._requests_of_text(body)
        except InstructLitError as error:
            raise ApiError(400, str(error), param="messages" if isinstance(body, ChatBody) else "prompt") from error
        kind = "chatcmpl" if isinstance(body, ChatBody) else "cmpl"
        return Job(body, requests, f"{kind}-{uuid.uuid4().hex}", int(time.time()))

    def start(self, job: Job, every_step: bool) -> Updates:
        """Hand the requests to the scheduler, and return what becomes of them; closing it cancels them.

        Raises ApiError: 429 at once when too many requests wait, 504 and 500 while it is read.
        """
        loop, inbox = asyncio.get_running_loop(), asyncio.Queue[tuple[int, Update]]()

        def teller(index: int) -> Any:
            return lambda update: loop.call_soon_threadsafe(inbox.put_nowait, (index, update))

        try:
            tickets = self.scheduler.submit([(r, teller(i)) for i, r in enumerate(job.requests)], every_step)
        except QueueFullError as error:
            raise ApiError(429, str(error), "rate_limit_error", code="rate_limit_exceeded") from error

        async def updates() -> Updates:
            end, n_left = loop.time() + self.timeout_s, len(tickets)
            try:
                while n_left:
                    try:
                        index, update = await asyncio.wait_for(inbox.get(), max(0.0, end - loop.time()))
                    except TimeoutError:
                        message = f"The answer took longer than {self.timeout_s:g} s (timeout_s)"
                        raise ApiError(504, message, "timeout_error", code="timeout") from None
                    if update.finish_reason == "cancelled":
                        raise ApiError(500, "The request was given up by the server", "server_error")
                    n_left -= update.finish_reason is not None
                    yield index, update
            finally:
                self.scheduler.cancel(tickets)

        return updates()

    async def answer(self, job: Job) -> dict[str, Any]:
        """The whole answer at once."""
        async with aclosing(self.start(job, every_step=False)) as updates:
            async for _ in updates:
                pass
        choices = [self._choice(job, index, request) for index, request in enumerate(job.requests)]
        return {**self._head(job, ""), "choices": choices, "usage": job.usage}

    async def pieces(self, job: Job, updates: Updates) -> AsyncGenerator[dict[str, Any], None]:
        """The answer piece by piece, as the data of server-sent events."""
        head = self._head(job, ".chunk" if job.is_chat else "")
        n_characters, n_tokens = [0] * len(job.requests), [0] * len(job.requests)
        if job.is_chat:
            first = {"role": "assistant", "content": ""}
            for index in range(len(job.requests)):
                yield {**head, "choices": [{"index": index, "delta": first, "logprobs": None, "finish_reason": None}]}
        async with aclosing(updates):
            async for index, update in updates:
                text = update.text[n_characters[index] :]
                if not text and update.finish_reason is None:
                    continue
                tokens, places = self._tokens(job, job.requests[index], update, n_tokens[index])
                n_characters[index], n_tokens[index] = len(update.text), n_tokens[index] + len(tokens)
                said = {"delta": {"content": text} if text else {}} if job.is_chat else {"text": text}
                logprobs = self._shown(job, tokens, places)
                choice = {"index": index, **said, "logprobs": logprobs, "finish_reason": update.finish_reason}
                yield {**head, "choices": [choice]}
        if job.body.stream_options is not None and job.body.stream_options.include_usage:
            yield {**head, "choices": [], "usage": job.usage}

    def _requests_of_chat(self, body: ChatBody) -> list[Request]:
        example = example_of(self.speaker, [(m.role, m.text) for m in body.messages], body.input)
        prompt = self.speaker.prompt_ids(example)
        room = self.speaker.context_length - len(prompt)
        n_new = body.n_new if body.n_new is not None else max(1, min(self.defaults.max_new_tokens, room))
        self._check_room(len(prompt), n_new, "messages")
        return self._prepare(prompt, self.speaker.ending(self._settings(body, n_new)), body.n_logprobs, body)

    def _requests_of_text(self, body: CompletionBody) -> list[Request]:
        tokenizer, requests = self.speaker.tokenizer, []
        n_new = N_COMPLETION_TOKENS if body.max_tokens is None else body.max_tokens
        if not body.prompts:
            raise ApiError(400, "prompt=[]: at least one is needed", param="prompt")
        n_asked, limit = len(body.prompts) * (body.n or 1), self.scheduler.limit
        if n_asked > limit:  # before they are made: a body of a megabyte may ask for millions
            raise ApiError(400, f"{n_asked} answers are asked for at once; at most {limit} can be open", param="prompt")
        n_vocab = self.speaker.model.head_weight.shape[0]
        for prompt in body.prompts:
            if isinstance(prompt, str):
                ids = [*tokenizer.prompt_start, *tokenizer.encode(prompt)]
            else:
                ids = prompt
            if any(not 0 <= i < n_vocab for i in ids):
                raise ApiError(400, f"prompt: token ids are between 0 and {n_vocab - 1}", param="prompt")
            ids = ids or [tokenizer.eot_id]  # the beginning of a text
            self._check_room(len(ids), n_new, "prompt")
            of_prompt = body.echo and body.logprobs is not None
            requests += self._prepare(ids, self._settings(body, n_new), body.n_logprobs, body, of_prompt)
        return requests

    def _prepare(
        self, prompt: list[int], settings: SamplingSettings, n_logprobs: int | None, body: Body, of_prompt: bool = False
    ) -> list[Request]:
        engine = self.scheduler.engine
        return [
            engine.prepare(prompt, replace(settings, seed=(settings.seed + i) % 2**63), n_logprobs, of_prompt)
            for i in range(body.n or 1)
        ]

    def _settings(self, body: Body, n_new: int) -> SamplingSettings:
        given = {
            name: value
            for name in ("temperature", "top_p", "top_k", "repetition_penalty")
            if (value := getattr(body, name)) is not None
        }
        seed = body.seed if body.seed is not None else secrets.randbits(62)
        return replace(self.defaults, **given, seed=seed, max_new_tokens=n_new, stop=(*self.defaults.stop, *body.stops))

    def _check_room(self, n_prompt: int, n_new: int, param: str) -> None:
        limit = self.speaker.context_length
        if n_prompt + n_new > limit:
            raise ApiError(
                400, f"This model's maximum context length is {limit} tokens. However, you requested "
                f"{n_prompt + n_new} tokens ({n_prompt} in the {param}, {n_new} in the completion).",
                param=param, code="context_length_exceeded",
            )  # fmt: skip

    def _head(self, job: Job, suffix: str) -> dict[str, Any]:
        kind = f"chat.completion{suffix}" if job.is_chat else "text_completion"
        return {"id": job.id, "object": kind, "created": job.created, "model": self.speaker.name}

    def _choice(self, job: Job, index: int, request: Request) -> dict[str, Any]:
        whole = Update(request.text, len(request.ids), request.finish_reason)
        tokens, places = self._tokens(job, request, whole, 0)
        end = {"index": index, "finish_reason": request.finish_reason}
        if isinstance(job.body, ChatBody):
            message = {"role": "assistant", "content": request.text, "refusal": None}
            return {**end, "message": message, "logprobs": self._shown(job, tokens, places)}
        text = request.text
        if isinstance(job.body, CompletionBody) and job.body.echo:
            tokenizer = self.speaker.tokenizer
            text = tokenizer.decode(request.prompt_ids) + text
            tokens = [*request.prompt_logprobs, *tokens] if job.body.n_logprobs is not None else []
            places = offsets(tokens, tokenizer.token_bytes)
        return {**end, "text": text, "logprobs": self._shown(job, tokens, places)}

    def _tokens(self, job: Job, request: Request, update: Update, n_before: int) -> tuple[Sequence[Any], list[int]]:
        """The scored tokens after the first `n_before` that begin within the certain text, and their places in it."""
        if request.n_logprobs is None:
            return [], []
        tokens = request.logprobs[: update.n_tokens]
        places = offsets(tokens, self.speaker.tokenizer.token_bytes)
        n = sum(place < len(update.text) for place in places)
        return tokens[n_before:n], places[n_before:n]

    def _shown(self, job: Job, tokens: Sequence[Any], places: Sequence[int]) -> dict[str, Any] | None:
        if job.requests[0].n_logprobs is None:
            return None
        bytes_of = self.speaker.tokenizer.token_bytes
        return of_chat(tokens, bytes_of) if job.is_chat else of_completion(tokens, places, bytes_of)
