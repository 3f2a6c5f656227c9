"""A model behind an OpenAI-compatible API (vLLM, llama.cpp, Ollama, hosted): responses and log-probabilities."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from instruct_lit.core.generation.sampling import SamplingSettings
from instruct_lit.errors import JudgeError
from instruct_lit.evaluation.judging.endpoints import Messages, OpenAIEndpoint, Reply, text_of
from instruct_lit.evaluation.judging.judge import Judge
from instruct_lit.evaluation.judging.prompt import Verdict

MAX_STOPS = 4  # of a request in OpenAI's API


class CompletionEndpoint(OpenAIEndpoint):
    """An endpoint whose questions are the bodies of requests as JSON, and whose replies are the first choice as JSON.

    Requests with `messages` go to `/chat/completions`, those with a `prompt` to `/completions`.
    """

    key = "endpoint"

    def path_of(self, body: Mapping[str, Any]) -> str:
        return "/chat/completions" if "messages" in body else "/completions"

    def payload(self, messages: Messages, verdict: Verdict) -> dict[str, Any]:
        return {"model": self.model, **json.loads(messages[0]["content"])}

    def reply(self, answer: Any) -> Reply:
        choice = answer["choices"][0]
        text = text_of(choice["message"]["content"]) if "message" in choice else choice["text"]
        kept = {name: choice.get(name) for name in ("finish_reason", "logprobs")}
        return Reply(json.dumps({"text": text or "", **kept}))


class AnyText(Verdict):
    """Every reply is accepted."""

    key, explain, request, value_schema = "text", False, "", {}

    def read(self, reply: str) -> Any:
        return json.loads(reply)


@dataclass
class RemoteModel:
    """A model behind an endpoint, whose replies are cached by `judge`, which asks several at a time and resumes.

    `chat` sends messages, which the server renders with its own template; otherwise prompts are sent, and `score`
    works where the server gives the log-probabilities of a prompt (`echo`), as vLLM and our `serve` do.
    """

    judge: Judge
    chat: bool = True
    run: str = ""
    label: str = ""
    n_cut: int = 0  # the server refuses prompts that are too long
    bar: tqdm | None = None

    @property
    def mode(self) -> str:
        """Whether a template is used."""
        return "on" if self.chat else "off"

    def write(self, prompts: Sequence[str | Messages], settings: Sequence[SamplingSettings]) -> list[dict[str, Any]]:
        """The `text` and `finish_reason` of each response; prompts are messages with `chat`, otherwise texts.

        The server gets the settings that are not the defaults, and the first `MAX_STOPS` stop texts. A response ends at
        the first of all stop texts.
        """
        name = "messages" if self.chat else "prompt"
        bodies = []
        for prompt, own in zip(prompts, settings, strict=True):
            body = {"max_tokens": own.max_new_tokens, "temperature": own.temperature}
            seed = own.of_prompt(json.dumps(prompt).encode()).seed % 2**31  # more is not an integer everywhere
            body |= {} if own.is_greedy else {"seed": seed}
            given = {key: getattr(own, key) for key in ("top_p", "top_k", "repetition_penalty")}
            body |= {key: value for key, value in given.items() if value != getattr(SamplingSettings, key)}
            bodies.append({name: prompt, **body, **({"stop": list(own.stop[:MAX_STOPS])} if own.stop else {})})
        cut = ((until(r["text"], own.stop), r) for r, own in zip(self._ask(bodies), settings, strict=True))
        return [r if text == r["text"] else {**r, "text": text, "finish_reason": "stop"} for text, r in cut]

    def score(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        """The log-likelihood of each continuation after its context, and whether it is the greedy one.

        Raises: JudgeError where the endpoint does not return the log-probabilities of a prompt.
        """
        fixed = {"max_tokens": 1, "temperature": 0, "echo": True, "logprobs": 1}
        replies = self._ask([{"prompt": context + continuation, **fixed} for context, continuation in pairs])
        return [self._read(reply, *pair) for pair, reply in zip(pairs, replies, strict=True)]

    def _read(self, reply: Mapping[str, Any], context: str, continuation: str) -> tuple[float, bool]:
        start, end, logprobs = len(context), len(context) + len(continuation), reply["logprobs"] or {}
        columns = [logprobs.get(key) or () for key in ("tokens", "token_logprobs", "top_logprobs", "text_offset")]
        rows = [row for row in zip(*columns, strict=False) if row[3] < end and row[3] + len(row[0]) > start]
        where = f"endpoint.url={self.judge.endpoint.identity['url']}"
        if logprobs and not reply["text"].startswith(context + continuation):
            raise JudgeError(
                f"{where}: the echoed prompt is not the one sent; it is longer than the server's context (give "
                "a smaller benchmark.n_shot), or the server has no echo"
            )
        if not rows or any(value is None for _, value, _, _ in rows):
            raise JudgeError(
                f"{where}: it does not return the log-probabilities of a prompt (echo and logprobs of /completions), "
                "which tasks with given choices need; use vLLM or serve, or tasks with written answers"
            )
        return sum(value for _, value, _, _ in rows), all(value >= max(top.values()) for _, value, top, _ in rows)

    def _ask(self, bodies: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        questions = [json.dumps(body) for body in bodies]
        with tqdm(total=len(set(questions)), desc=f"{self.label} at its endpoint", unit="request") as bar:
            found = self.judge.ask(AnyText(), questions, bar.update)
        refused = next((judgement.refused for judgement in found if judgement.refused), None)
        if refused is not None:
            raise JudgeError(f"endpoint.model={self.judge.endpoint.model}: a request was refused: {refused}")
        return [judgement.value for judgement in found]


def until(text: str, stops: Sequence[str]) -> str:
    """The text up to its first stop."""
    return text[: min((place for stop in stops if (place := text.find(stop)) >= 0), default=len(text))]


def messages_of(row: Mapping[str, Any]) -> Messages:
    """A record as messages: system prompt, earlier turns, then instruction and input."""
    found = [{"role": "system", "content": row["system"]}] if row.get("system") else []
    for question, answer in row.get("history") or ():
        found += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    last = "\n\n".join(filter(None, (row["instruction"], row.get("input"))))
    return [*found, {"role": "user", "content": last}]
