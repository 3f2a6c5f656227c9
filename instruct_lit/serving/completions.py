"""The two completion calls of OpenAI's API over one engine, without HTTP."""

import asyncio
import secrets
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any

from instruct_lit.core.data.example import Example
from instruct_lit.core.data.template import Template
from instruct_lit.core.generation.engine import Engine
from instruct_lit.core.generation.request import Request
from instruct_lit.core.generation.sampling import SamplingSettings
from instruct_lit.errors import DataError, InstructLitError
from instruct_lit.evaluation.answer_parts import Parts
from instruct_lit.serving.chat_model import ChatModel
from instruct_lit.serving.logprobs import LogprobRecorder, chat_logprobs, completion_logprobs, text_offsets
from instruct_lit.serving.metrics import Metrics
from instruct_lit.serving.protocol import ApiError, Body, ChatBody, CompletionBody, Message, shutting_down
from instruct_lit.serving.scheduler import PendingRequest, QueueFullError, Scheduler, Update, n_generated
from instruct_lit.serving.tool_calls import Reading, delta_of, example_of_chat, is_rich, message_of, reading_of, text_of

N_COMPLETION_TOKENS = 16  # OpenAI's default of `/v1/completions`


@dataclass
class Job:
    """A call with its prepared requests, `n` for every prompt in the order of the prompts.

    `head` are the fields that every part of the response shares; `unfinished` are the requests that the scheduler has.
    """

    body: Body
    requests: list[Request]
    head: dict[str, Any]
    reading: Reading
    unfinished: list[Request] = field(default_factory=list)
    updates: asyncio.Queue[Update] = field(default_factory=asyncio.Queue)

    @property
    def usage(self) -> dict[str, int]:
        """Numbers of tokens of the prompts, each counted once, and of the responses with their end-of-text."""
        n_prompt = sum(len(request.prompt_ids) for request in self.requests[:: self.body.n or 1])
        n_new = sum(n_generated(request) for request in self.requests)
        return {"prompt_tokens": n_prompt, "completion_tokens": n_new, "total_tokens": n_prompt + n_new}


class CompletionService:
    """Answers completion calls with one model.

    Args:
        defaults: sampling settings for the fields that a call leaves out.
        max_waiting: requests that may wait for a free row of the engine.
        timeout_s: seconds that a response may take; None sets no limit.
    """

    bodies: tuple[type[ChatBody], type[CompletionBody]] = (ChatBody, CompletionBody)

    def __init__(
        self,
        chat_model: ChatModel,
        engine: Engine,
        defaults: SamplingSettings,
        max_waiting: int = 256,
        timeout_s: float | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self.chat_model, self.defaults, self.timeout_s, self.metrics = chat_model, defaults, timeout_s, metrics
        self.scheduler = Scheduler(engine, max_waiting, self.on_finished)
        # The ids before a text, which a model's own chat template writes itself.
        self.text_start = list(chat_model.tokenizer.without_markup().prompt_start)
        self.started_at = int(time.time())

    def model(self) -> dict[str, Any]:
        """The entry of `/v1/models`, with the context length under vLLM's name."""
        return {
            "id": self.chat_model.name, "object": "model", "created": self.started_at, "owned_by": "instruct-lit",
            "max_model_len": self.chat_model.context_length,
        }  # fmt: skip

    def prepare(self, body: Body) -> Job:
        """Check a body against the model and make its requests; slow for long prompts.

        Raises: ApiError.
        """
        name = self.chat_model.name
        if body.model != name:
            message = f"The model {body.model!r:.100} does not exist; there is {name!r}"
            raise ApiError(404, message, param="model", code="model_not_found")
        check(body)
        reading = Reading()
        if isinstance(body, ChatBody):
            reading = reading_of(body, self.chat_model.template)
            n_logprobs, score_prompt = (body.top_logprobs or 0) if body.logprobs else None, False
        else:
            assert isinstance(body, CompletionBody)
            n_logprobs, score_prompt = body.logprobs, bool(body.echo)
        requests: list[Request] = []
        try:
            for prompt, settings in self.prompts(body):
                for i in range(body.n or 1):
                    hook = None if n_logprobs is None else LogprobRecorder(n_logprobs, score_prompt)
                    drawn = len(requests) if body.seed is None else i  # without a seed equal prompts are answered anew
                    own = replace(settings, seed=(settings.seed + drawn) % 2**63)
                    requests.append(self.scheduler.engine.prepare(prompt, own, hook))
        except InstructLitError as error:
            raise ApiError(400, str(error), param=body.PROMPT) from error
        head = {"id": f"{body.ID_PREFIX}-{uuid.uuid4().hex}", "object": body.OBJECT}
        return Job(body, requests, {**head, "created": int(time.time()), "model": name}, reading)

    def prompts(self, body: Body) -> list[tuple[Sequence[int], SamplingSettings]]:
        """Token ids and settings of every prompt of a body.

        Raises: ApiError, or DataError for prompts that cannot be answered.
        """
        if isinstance(body, ChatBody):
            template, reading = self.chat_model.template, reading_of(body, self.chat_model.template)
            if reading.has_tools or is_rich(body.messages, template):
                example = example_of_chat(template, body, reading.has_tools)
            else:
                example = example_of(template, [(m.role, text_of(m)) for m in body.messages], body.input)
            asked = self.chat_model.encoder.prompt_ids(example)
            texts: list[Any] = [[*asked, *self.chat_model.tokenizer.encode(reading.prefix, asked)]]
            n_new = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
            stops = self.chat_model.stops
        else:
            assert isinstance(body, CompletionBody)
            texts, stops = body.prompts, ()
            n_new = N_COMPLETION_TOKENS if body.max_tokens is None else body.max_tokens
            if not texts:
                raise DataError("prompt=[]: give at least one prompt")
        n, most = len(texts) * (body.n or 1), self.scheduler.limit
        if n > most:  # checked first: a body of a megabyte can request millions
            raise DataError(f"{body.PROMPT}, n: {n} responses requested at once; at most {most} can be open")
        settings, tokenizer, limit = self.settings(body), self.chat_model.tokenizer, self.chat_model.context_length
        prompts: list[tuple[Sequence[int], SamplingSettings]] = []
        for text in texts:
            ids = tokenizer.encode(text) if isinstance(text, str) else text
            if isinstance(text, str) and ids[: len(self.text_start)] != self.text_start:
                ids = [*self.text_start, *ids]
            ids = ids or [tokenizer.eot_id]  # the beginning of a text
            n = max(1, min(self.defaults.max_new_tokens, limit - len(ids))) if n_new is None else n_new
            if len(ids) + n > limit:
                message = (
                    f"This model's maximum context length is {limit} tokens. However, you requested {len(ids) + n} "
                    f"tokens ({len(ids)} in the {body.PROMPT}, {n} in the completion)."
                )
                raise ApiError(400, message, param=body.PROMPT, code="context_length_exceeded")
            prompts.append((ids, replace(settings, max_new_tokens=n, stop=(*settings.stop, *stops))))
        return prompts

    def settings(self, body: Body) -> SamplingSettings:
        """The sampling settings of a body, the defaults where it has none, with a random seed where it has none."""
        names = ("temperature", "top_p", "top_k", "repetition_penalty")
        given: dict[str, Any] = {name: value for name in names if (value := getattr(body, name)) is not None}
        if given.get("top_k", 1) < 1:
            given["top_k"] = None
        seed = secrets.randbits(62) if body.seed is None else body.seed
        stops = (body.stop,) if isinstance(body.stop, str) else body.stop or ()
        return replace(self.defaults, **given, seed=seed, stop=(*self.defaults.stop, *stops))

    def submit(self, job: Job, every_step: bool) -> None:
        """Hand the unfinished requests of a job to the scheduler, whose updates arrive in `job.updates`.

        Raises: ApiError (429) where too many requests wait, and (503) at the shutdown.
        """
        loop: Any = asyncio.get_running_loop()
        on_update = partial(loop.call_soon_threadsafe, job.updates.put_nowait)
        job.unfinished = [request for request in job.requests if request.finish_reason is None]
        try:
            self.scheduler.submit(job.unfinished, on_update, every_step)
        except QueueFullError as error:
            if self.scheduler.is_closing:
                raise shutting_down() from error
            raise ApiError(429, str(error), "rate_limit_error", code="rate_limit_exceeded") from error

    async def updates(self, job: Job) -> AsyncGenerator[Update, None]:
        """The updates of a submitted job until all its requests have ended; closing it cancels them.

        Raises: ApiError (504, 503, 500).
        """
        end = None if self.timeout_s is None else asyncio.get_running_loop().time() + self.timeout_s
        n_left = len(job.unfinished)
        try:
            while n_left:
                async with asyncio.timeout_at(end):
                    update = await job.updates.get()
                if update.finish_reason == "cancelled":
                    raise self.failure()
                n_left -= update.finish_reason is not None
                yield update
        except TimeoutError:
            message = f"The response took longer than {self.timeout_s:g} s (timeout_s)"
            raise ApiError(504, message, "timeout_error", code="timeout") from None
        finally:
            if n_left:
                self.scheduler.cancel(job.unfinished)

    def failure(self) -> ApiError:
        """The error of a request that the server has cancelled."""
        if self.scheduler.is_closing:
            return shutting_down()
        return ApiError(500, "The request was cancelled by the server", "server_error")

    async def answer(self, job: Job) -> dict[str, Any]:
        """The whole response at once."""
        self.submit(job, every_step=False)
        async with aclosing(self.updates(job)) as updates:
            async for _ in updates:
                pass
        choices = []
        for index, request in enumerate(job.requests):
            end = self.shown(job, Update(request, request.text, n_generated(request), request.finish_reason))
            reason: str | None = request.finish_reason
            if isinstance(job.body, CompletionBody):
                echoed = self.chat_model.tokenizer.decode(request.prompt_ids) if job.body.echo else ""
                content: dict[str, Any] = {"text": echoed + end.text}
            else:
                parts = job.reading.parts(request.text, finished=True)
                content = {"message": message_of(parts)}
                reason = "tool_calls" if parts.calls and reason == "stop" else reason
            logprobs, _ = self.logprobs(job, end)
            choices.append({"index": index, **content, "logprobs": logprobs, "finish_reason": reason})
        return {**job.head, "choices": choices, "usage": job.usage}

    async def chunks(self, job: Job) -> AsyncGenerator[dict[str, Any], None]:
        """The response to a submitted job chunk by chunk, the data of server-sent events."""
        head, is_chat = job.head, isinstance(job.body, ChatBody)
        indices = {request: index for index, request in enumerate(job.requests)}
        sent, n_tokens = [Parts("")] * len(indices), [0] * len(indices)
        if is_chat:
            head = {**head, "object": "chat.completion.chunk"}
            first = {"delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
            for index in indices.values():
                yield {**head, "choices": [{"index": index, **first}]}
        async with aclosing(self.updates(job)) as updates:
            async for update in updates:
                update = self.shown(job, update)
                index, reason = indices[update.request], update.finish_reason
                parts = job.reading.parts(update.text, reason is not None) if is_chat else Parts(update.text)
                delta = delta_of(parts, sent[index])
                if not delta and reason is None:
                    continue
                logprobs, n_tokens[index] = self.logprobs(job, update, n_tokens[index])
                sent[index] = parts
                content = {"delta": delta} if is_chat else {"text": delta.get("content", "")}
                shown = "tool_calls" if parts.calls and reason == "stop" else reason
                yield {**head, "choices": [{"index": index, **content, "logprobs": logprobs, "finish_reason": shown}]}
        if job.body.stream_options is not None and job.body.stream_options.include_usage:
            yield {**head, "choices": [], "usage": job.usage}

    def shown(self, job: Job, update: Update) -> Update:
        """The update, of a completion with the space that a tokenizer (Llama 2's) removes from a text's beginning."""
        first, tokenizer = update.request.ids[:1], self.chat_model.tokenizer
        raw = b"".join(map(tokenizer.token_bytes, first))
        is_removed = raw.startswith(b" ") and len(raw) > len(tokenizer.decode(first).encode())
        if not is_removed or isinstance(job.body, ChatBody):
            return update
        return replace(update, text=" " + update.text)

    def logprobs(self, job: Job, update: Update, n_before: int = 0) -> tuple[dict[str, Any] | None, int]:
        """Log-probabilities of the tokens after the first `n_before`, and the number of all tokens up to the last.

        Only tokens that begin within the text of the update count, as in OpenAI's chats. Of a finished completion all
        count, as in vLLM: end-of-text and a stop text too. With `echo` those of the prompt come first.
        """
        recorded, token_bytes = update.request.hook, self.chat_model.tokenizer.token_bytes
        if not isinstance(recorded, LogprobRecorder):
            return None, 0
        tokens = recorded.response[: update.n_tokens]
        offsets = text_offsets(tokens, token_bytes)
        n = sum(offset < len(update.text) for offset in offsets)
        if update.finish_reason is not None and isinstance(job.body, CompletionBody):
            n = len(tokens)
        tokens, offsets = tokens[n_before:n], offsets[n_before:n]
        if isinstance(job.body, ChatBody):
            return chat_logprobs(tokens, token_bytes), n
        if recorded.reads_prompt:
            tokens = [*recorded.prompt, *tokens]
            offsets = text_offsets(tokens, token_bytes)
        return completion_logprobs(tokens, offsets, token_bytes), n

    def on_finished(self, pending: PendingRequest) -> None:
        """Count a request that has ended; called in the scheduler's thread."""
        if self.metrics is None:
            return
        request = pending.request
        self.metrics.requests.labels(str(request.finish_reason)).inc()
        self.metrics.tokens.labels("prompt").inc(len(request.prompt_ids))
        self.metrics.tokens.labels("completion").inc(n_generated(request))
        if pending.first_token_at is not None:
            self.metrics.first_token_s.observe(pending.first_token_at - pending.submitted_at)
        self.metrics.request_s.observe(time.monotonic() - pending.submitted_at)


def check(body: Body) -> None:
    """Raise ApiError for a value or a combination that is valid in OpenAI's API and not supported."""
    parts: list[tuple[str, Any]] = [("", body)]
    if isinstance(body, ChatBody):
        parts += [(f"messages.{i}.", message) for i, message in enumerate(body.messages)]
    for place, part in parts:
        for declared in fields(part):
            name, value = declared.name, getattr(part, declared.name)
            if value is not None and value not in declared.metadata.get("harmless", (value,)):
                remedy = "use repetition_penalty" if name.endswith("_penalty") else "leave it out"
                message = f"{place}{name}={value!r:.80}: not supported by this server; {remedy}"
                raise ApiError(400, message, param=place + name)
        if isinstance(part, Message) and part.content is None and part.role != "assistant":
            raise ApiError(400, f"{place}content: null; give a text", param=f"{place}content")
    stops = [body.stop] if isinstance(body.stop, str) else body.stop or []
    n_stops = body.MAX_STOPS
    rules = {"stop": (len(stops) <= n_stops and all(stops), f"at most {n_stops} texts of at least one character")}
    if isinstance(body, ChatBody):
        rules["top_logprobs"] = (not body.top_logprobs or bool(body.logprobs), "0 unless logprobs is true")
    elif isinstance(body, CompletionBody):
        rules["best_of"] = (body.best_of in (None, 1, body.n or 1), "1, or n")
        rules["stream"] = (not (body.stream and body.echo), "false where echo is true")
    for name, (holds, allowed) in rules.items():
        if not holds:
            raise ApiError(400, f"{name}={getattr(body, name)!r:.80}: must be {allowed}", param=name)


def example_of(template: Template, messages: Sequence[tuple[str, str]], input_text: str = "") -> Example:
    """The example whose prompt is that of a conversation of (role, text); `input_text` is the last turn's input.

    A system prompt or earlier turns for which the template has no place are left out, as by the bundle's chat template.

    Raises: DataError where user and assistant do not alternate, or the user does not speak last.
    """
    system = "\n\n".join(text for role, text in messages if role in ("system", "developer"))
    turns = [(role, text) for role, text in messages if role in ("user", "assistant")]
    if [role for role, _ in turns] != ["user", "assistant"] * (len(turns) // 2) + ["user"]:
        roles = ", ".join(role for role, _ in turns[-6:]) or "none"
        raise DataError(f"messages: roles {roles}; user and assistant must take turns, and the user speaks last")
    texts = [text for _, text in turns]
    history = tuple(zip(texts[:-1:2], texts[1::2], strict=True)) if template.has_turns else ()
    return Example(texts[-1], "", input_text, system=system if template.has_system else "", history=history)
