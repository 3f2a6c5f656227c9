"""Asks a judge many questions concurrently: replies are cached, unreadable ones asked again, unparsed ones counted."""

import asyncio
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, asdict, dataclass
from typing import Any

from instruct_lit.errors import InstructLitError, JudgeError
from instruct_lit.evaluation.answer_cache import AnswerCache
from instruct_lit.evaluation.judging.endpoints import Endpoint, Messages, Refused, Reply
from instruct_lit.evaluation.judging.prompt import Verdict
from instruct_lit.evaluation.statistics import interval

MAX_UNPARSED = 0.5  # by default the share of verdicts above which a mean says more about the judge
ASSUMED_SECONDS = 2.0  # per request, of a judge without cached replies
MESSAGE_TOKENS = 16  # upper bound of what a chat template adds to a message


@dataclass(frozen=True)
class Judgement:
    """The result of one question: its `value`, None where no reply could be parsed, and the last `reply`."""

    value: Any
    reply: str
    n_asked: int  # attempts, in this or in an earlier run
    refused: str | None = None  # the endpoint's reason for refusing the question

    def as_record(self) -> dict[str, Any]:
        """As a JSON object for `responses.jsonl`."""
        return {key: value for key, value in asdict(self).items() if key != "refused" or value}


@dataclass(frozen=True)
class Estimate:
    """Requests, tokens, time and cost of the questions that the cache does not answer.

    `n_prompt_tokens`, `seconds` and `dollars` are those of one request per question. The bounds hold where every
    question is asked `n_asks` times, and replies are as long as allowed; they are None where replies have no limit.
    """

    n_questions: int
    n_left: int
    n_prompt_tokens: int
    seconds: float
    max_requests: int
    max_prompt_tokens: int | None
    max_reply_tokens: int | None
    dollars: float | None = None  # None without prices
    max_dollars: float | None = None

    def __str__(self) -> str:
        if not self.n_left:
            return f"{self.n_questions} questions, all answered in the cache"
        money = f", {self.dollars:.2f} US dollars" if self.dollars is not None else ""
        bound = f"; at most {self.max_requests:,} requests"
        if self.max_prompt_tokens is not None:
            bound += f", {self.max_prompt_tokens:,} tokens of prompts, {self.max_reply_tokens:,} of replies"
        if money:
            is_bounded = self.max_dollars is not None
            bound += f", {self.max_dollars:.2f} US dollars" if is_bounded else "; no bound of the cost"
        return (
            f"{self.n_questions} questions, {self.n_questions - self.n_left} of them answered in the cache; "
            f"{self.n_left} to ask: about {self.n_prompt_tokens:,} tokens, {self.seconds:.0f} s{money}{bound}"
        )


@dataclass(eq=False)
class Judge:
    """Asks an endpoint, `n_concurrent` questions at a time; its replies are cached by messages and settings.

    A reply that cannot be parsed is sent back with a request to follow the form, until a question has been asked
    `n_asks` times.
    """

    endpoint: Endpoint
    cache: AnswerCache
    _: KW_ONLY
    n_concurrent: int = 8
    n_asks: int = 3
    prices: tuple[float, float] | None = None  # US dollars per million tokens of prompts and of replies
    must_be_confirmed: bool = False  # by a person before the judge is asked

    def __post_init__(self) -> None:
        self.n_requests = self.n_prompt_tokens = self.n_reply_tokens = 0  # of this run; cached replies cost nothing

    def check(self) -> None:
        """Raise JudgeError when the endpoint cannot be used, before long work."""

        async def check() -> None:
            async with self.endpoint:
                await self.endpoint.check()

        asyncio.run(check())

    def estimate(self, verdict: Verdict, questions: Sequence[str], n_tokens: Callable[[str], int]) -> Estimate:
        """What asking the questions costs, and the upper bound; `n_tokens` estimates the tokens of a text.

        The bound takes a byte for a token, since a tokenizer's token has at least one. Requests that time out are not
        in it.
        """
        unique, longest = set(questions), self.endpoint.max_tokens
        again = _n_bytes(_again(Reply(""), verdict)) + (longest or 0)
        n_left = n_prompt = n_requests = max_prompt = 0
        for messages, n_asks in (self._unanswered(question, verdict) for question in unique):
            n_left += n_asks > 0
            n_requests += n_asks
            n_prompt += sum(n_tokens(message["content"]) for message in messages) if n_asks else 0
            first = _n_bytes(messages) + len(json.dumps(verdict.schema))
            max_prompt += n_asks * first + again * n_asks * (n_asks - 1) // 2
        durations = [value["seconds"] for value in self.cache.values() if value["model"] == self.endpoint.model]
        seconds = n_left * statistics.fmean(durations or [ASSUMED_SECONDS]) / self.n_concurrent
        of_all = (len(unique), n_left, n_prompt, seconds, n_requests)
        if longest is None:
            return Estimate(*of_all, None, None, self._dollars(n_prompt, 0))
        max_reply = n_requests * longest
        bounds = self._dollars(n_prompt, n_left * longest), self._dollars(max_prompt, max_reply)
        return Estimate(*of_all, max_prompt, max_reply, *bounds)

    def ask(
        self, verdict: Verdict, questions: Sequence[str], on_done: Callable[[], object] | None = None
    ) -> list[Judgement]:
        """The judgements of rendered prompts, in their order; equal prompts are asked once.

        Raises: JudgeError when the endpoint cannot be used or refuses every question. Replies received before that
            are in the cache, so that the same call resumes.
        """
        unique = list(dict.fromkeys(questions))
        waiting, found = iter(unique), dict[str, Judgement]()

        async def work() -> None:
            for question in waiting:
                found[question] = await self._judge(question, verdict)
                if on_done is not None:
                    on_done()

        async def ask_all() -> None:
            asyncio.get_running_loop().set_exception_handler(_log_errors)
            async with self.endpoint, asyncio.TaskGroup() as group:
                for _ in range(self.n_concurrent):
                    group.create_task(work())

        try:
            asyncio.run(ask_all())
        except BaseExceptionGroup as group:
            error: BaseException = group
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
            if not isinstance(error, InstructLitError):
                raise
            resume = f"; {len(found)} of {len(unique)} replies are cached, run the same command to resume"
            raise JudgeError(f"{error}{resume if found else ''}") from error
        if unique and all(judgement.refused for judgement in found.values()):
            key, reason = self.endpoint.key, found[unique[0]].refused
            raise JudgeError(f"the {key} refuses every question: {reason}; {key}.{self.endpoint.remedy}")
        return [found[question] for question in questions]

    def usage(self) -> dict[str, Any]:
        """Requests and tokens of this run, with their cost where prices are known; cached replies do not count."""
        dollars = self._dollars(self.n_prompt_tokens, self.n_reply_tokens)
        return {
            "n_requests": self.n_requests, "n_prompt_tokens": self.n_prompt_tokens,
            "n_reply_tokens": self.n_reply_tokens, **({} if dollars is None else {"usd": dollars}),
        }  # fmt: skip

    async def _judge(self, question: str, verdict: Verdict) -> Judgement:
        messages, reply = _first(question), Reply("")
        for n_asked in range(1, self.n_asks + 1):
            try:
                reply = await self._reply(messages, verdict)
            except Refused as error:
                return Judgement(None, reply.text, n_asked, str(error))
            value = verdict.read(reply.text)
            if value is not None:
                return Judgement(value, reply.text, n_asked)
            messages = [*messages, *_again(reply, verdict)]
        return Judgement(None, reply.text, self.n_asks)

    async def _reply(self, messages: Messages, verdict: Verdict) -> Reply:
        reply = self._cached(messages)
        if reply is None:
            reply = await self.endpoint.ask(messages, verdict)
            value = {"model": self.endpoint.model, **asdict(reply)}
            self.cache.add([((self.endpoint.identity, messages), value)])
            self.n_requests += 1
            self.n_prompt_tokens += reply.n_prompt_tokens
            self.n_reply_tokens += reply.n_reply_tokens
        return reply

    def _cached(self, messages: Messages) -> Reply | None:
        found = self.cache.get(self.endpoint.identity, messages)
        return found and Reply(**{name: value for name, value in found.items() if name != "model"})

    def _unanswered(self, question: str, verdict: Verdict) -> tuple[Messages, int]:
        """The first messages of a question that the cache does not answer, and how often it may still be asked."""
        messages = _first(question)
        for n_asked in range(self.n_asks):
            reply = self._cached(messages)
            if reply is None:
                return messages, self.n_asks - n_asked
            if verdict.read(reply.text) is not None:
                break
            messages = [*messages, *_again(reply, verdict)]
        return messages, 0

    def _dollars(self, n_prompt_tokens: int, n_reply_tokens: int) -> float | None:
        if self.prices is None:
            return None
        return (n_prompt_tokens * self.prices[0] + n_reply_tokens * self.prices[1]) / 1e6


def summary(
    judgements: Sequence[Judgement], low: float, high: float, seed: int = 0, max_unparsed: float = MAX_UNPARSED
) -> dict[str, Any]:
    """The mean score over all responses, with unparsed verdicts counted as the lowest score.

    `mean_at_best` counts them as the highest score instead: an upper bound of the mean. `score` is None where a larger
    share than `max_unparsed` is unparsed.
    """
    values = [judgement.value for judgement in judgements]
    scores = [low if value is None else value for value in values]
    score = interval(scores, seed, shares=(low, high) == (0, 1))
    found = {
        "n_unparsed": values.count(None),
        "n_verdicts": len(values),
        "n_refused": sum(judgement.refused is not None for judgement in judgements),
        "n_asked_again": sum(judgement.n_asked > 1 for judgement in judgements),
    }
    best = score["mean"] + found["n_unparsed"] * (high - low) / len(values)
    is_judged = found["n_unparsed"] <= max_unparsed * len(values)
    return {"score": score if is_judged else None, "mean_at_best": best, **found}


def require_judged(figures: Mapping[str, Any], replies: str = "responses.jsonl") -> None:
    """Raise JudgeError where too many verdicts of the judge, or of one of a panel, could not be parsed.

    Args:
        replies: where they can be read.
    """
    for label, own in {"": figures, **figures.get("judges", {})}.items():
        if own.get("score", own.get("win_rate")) is None:
            by = f" by {label}" if label else ""
            raise JudgeError(
                f"not judged{by}: {own['n_unparsed']} of {own['n_verdicts']} verdicts could not be parsed; everything "
                f"is saved, read the replies in {replies} and give another judge.model or a larger judge.max_unparsed"
            )


def _log_errors(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log what the loop does by default, but not Ctrl-C or SIGTERM within a task, which end the program anyway."""
    if isinstance(context.get("exception", Exception()), Exception):
        loop.default_exception_handler(context)


def _first(question: str) -> Messages:
    return [{"role": "user", "content": question}]


def _again(reply: Reply, verdict: Verdict) -> Messages:
    """The messages that follow an unreadable reply."""
    request = f"This reply cannot be read. {verdict.request}"
    return [{"role": "assistant", "content": reply.text}, {"role": "user", "content": request}]


def _n_bytes(messages: Messages) -> int:
    return sum(len(message["content"].encode(errors="replace")) + MESSAGE_TOKENS for message in messages)
