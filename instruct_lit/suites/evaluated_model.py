"""A model under evaluation: log-likelihoods and responses, cached by request."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from tqdm import tqdm

from instruct_lit.core.data.example import Example
from instruct_lit.core.data.template import Template
from instruct_lit.core.data.tokenizer import Tokenizer
from instruct_lit.core.generation.engine import DECODE_LOOPS, Engine
from instruct_lit.core.generation.sampling import SamplingSettings
from instruct_lit.core.model.causal import CausalLM
from instruct_lit.evaluation.answer_cache import AnswerCache
from instruct_lit.evaluation.remote_model import until
from instruct_lit.evaluation.vllm_engine import VLLMEngine
from instruct_lit.hf.tokenizer import HFTokenizer
from instruct_lit.suites.scoring import Pair, Score, log_likelihoods
from instruct_lit.suites.suite import BenchmarkError


@dataclass
class EvaluatedModel:
    """A model under evaluation, named by `run` and `label` in reports, and the cache of its responses."""

    model: CausalLM
    tokenizer: Tokenizer
    template: Template  # of prompts of tasks in chat form (`mode` on); its suffix ends a response
    cache: AnswerCache = field(default_factory=lambda: AnswerCache(None))
    max_rows: int = 16
    bar: tqdm | None = None
    n_cut: int = 0  # requests whose prompt was truncated from the left
    run: str = ""
    label: str = ""
    mode: str = "off"
    vllm: VLLMEngine | None = None  # computes in place of `model`
    cuda_graphs: bool = True

    def __post_init__(self) -> None:
        self.encode = lru_cache(maxsize=1024)(lambda text: tuple(self.tokenizer.encode(text)))
        loops = DECODE_LOOPS if self.cuda_graphs else ()  # one engine for all suites, whose recorded steps are kept
        self.engine = Engine(self.model, self.tokenizer, self.max_rows, make_loops=loops)

    def render(self, messages: Sequence[dict[str, str]]) -> str:
        """The prompt of a conversation as the bundle's chat template renders it; an assistant message follows it.

        A system message, the description of a task, is left out where the template has no place for it, as by `HFLM`.
        """
        said = {m["role"]: m["content"] for m in messages}
        system = said.get("system", "") if self.template.has_system else ""
        begun = messages[-1]["content"] if messages[-1]["role"] == "assistant" else ""
        return self.template.prompt(Example(said.get("user", ""), "", system=system)) + begun

    def score(self, texts: Sequence[Any], pairs: Sequence[Pair]) -> list[Score]:
        """Scores of pairs, from the cache where it has them; `texts` are the keys.

        Raises: BenchmarkError for a continuation that is longer than the context.
        """
        longest = self.model.config.context_length
        if (n_tokens := max((len(target) for _, target in pairs), default=0)) > longest:
            raise BenchmarkError(
                f"suite.tasks: a choice has {n_tokens} tokens, the model's context {longest}; leave its task out"
            )
        self.expect(len(pairs))
        found = {i: Score(*old) for i, text in enumerate(texts) if (old := self.cache.get("score", text)) is not None}
        self._advance(len(found))
        missing = [i for i in range(len(pairs)) if i not in found]
        self.n_cut += sum(len(c) + len(t) > longest + 1 for c, t in pairs)

        def keep(new: dict[int, Score]) -> None:
            self.cache.add((("score", texts[missing[i]]), score) for i, score in new.items())
            self._advance(len(new))

        waiting = [pairs[i] for i in missing]
        if self.vllm is None:
            scores = log_likelihoods(self.model, waiting, on_scored=keep)
        else:
            scores = [Score(*found) for found in self.vllm.log_likelihoods(waiting)]
            keep(dict(enumerate(scores)))
        found |= dict(zip(missing, scores, strict=True))
        return [found[i] for i in range(len(pairs))]

    def write(self, prompts: Sequence[str | Sequence[int]], settings: Sequence[SamplingSettings]) -> list[str]:
        """Responses up to their first stop text; prompts (texts or ids) are truncated from the left to leave room."""
        requests = [("write", prompt, repr(setting)) for prompt, setting in zip(prompts, settings, strict=True)]
        found = {i: old for i, request in enumerate(requests) if (old := self.cache.get(*request)) is not None}
        self._advance(len(found))
        fitted = list(map(self.fit, prompts, settings))
        # Sorted, so that common prefixes are prefilled together.
        waiting = sorted((i for i in range(len(prompts)) if i not in found), key=lambda i: fitted[i][0])
        engine = self.vllm or self.engine
        engine.tokenizer = self.tokenizer

        def keep(request: Any) -> None:
            i = waiting[request.number]
            found[i] = until(self._text(request), settings[i].stop)
            self.cache.add([(requests[i], found[i])])
            self._advance(1)

        each = [fitted[i][1].of_prompt(fitted[i][0]) for i in waiting]
        engine.generate([fitted[i][0] for i in waiting], each, on_finished=keep)
        return [found[i] for i in range(len(prompts))]

    def fit(self, prompt: str | Sequence[int], settings: SamplingSettings) -> tuple[tuple[int, ...], SamplingSettings]:
        """Ids of a prompt, truncated from the left to leave room for the response, and its settings.

        Where the limit of the response is not below the context length, each gets half of the context.
        """
        longest = self.model.config.context_length
        n_new = settings.max_new_tokens if settings.max_new_tokens < longest else longest // 2
        ids = (*self.tokenizer.prompt_start, *self.encode(prompt)) if isinstance(prompt, str) else tuple(prompt)
        room = longest - n_new
        self.n_cut += len(ids) > room
        return ids[-room:] or (self.tokenizer.eot_id,), replace(settings, max_new_tokens=n_new)

    def _text(self, request: Any) -> str:
        """The response without special tokens of a tokenizer of transformers, which a model may write anywhere."""
        if not isinstance(self.tokenizer, HFTokenizer):
            return request.text
        return self.tokenizer.hf.decode(request.ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def expect(self, n: int) -> None:
        """Lengthen the progress bar by `n` requests."""
        if self.bar is not None:
            self.bar.total = (self.bar.total or 0) + n
            self.bar.refresh()

    def _advance(self, n: int) -> None:
        if self.bar is not None:
            self.bar.update(n)
