"""vLLM in this process in place of our decoder (`engine=vllm`): the same prompts, answers and log-likelihoods."""

import gc
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from instruct_lit.core.data.tokenizer import Tokenizer
from instruct_lit.core.generation.engine import Engine
from instruct_lit.core.generation.request import Request
from instruct_lit.core.model.causal import CausalLM
from instruct_lit.optional_imports import load

Pair = tuple[Sequence[int], Sequence[int]]  # context and continuation ids
N_AT_ONCE = 256  # requests that vLLM gets before their answers are cached
GPU_SHARE = 0.8  # of the GPU's memory; our own model stays on the CPU meanwhile


class VLLMEngine(Engine):
    """Generates with vLLM from the directory of a model, in the precision of `model`, which computes nothing.

    Prompts are our token ids, so vLLM's template and tokenizer do not matter. Sampled answers are not ours: it
    draws by another generator.

    Raises: ConfigError where vLLM is not installed.
    """

    def __init__(self, model: CausalLM, tokenizer: Tokenizer, folder: Path) -> None:
        super().__init__(model, tokenizer)
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "4")  # gigabytes, where there is no GPU
        self._vllm = load("vllm", "engine=vllm", "vllm")
        self._llm: Any = self._vllm.LLM(
            model=str(folder), dtype=str(model.head_weight.dtype).removeprefix("torch."),
            max_model_len=self.context_length, gpu_memory_utilization=GPU_SHARE,
        )  # fmt: skip

    @property
    def dtype(self) -> Any:
        """What cached answers depend on beside the settings."""
        return f"vllm {self._vllm.__version__}"

    def step(self) -> list[Request]:
        """Answer the next waiting requests as a whole."""
        group = [self._waiting.popleft() for _ in range(min(N_AT_ONCE, len(self._waiting)))]
        for request, found in zip(group, self._outputs([r.prompt_ids for r in group], group), strict=True):
            output = found.outputs[0]
            ended = output.finish_reason == "stop" and not isinstance(output.stop_reason, str)
            tokens = [*output.token_ids, *([self.tokenizer.eot_id] if ended else [])]
            request.finish_reason = request.extend(tokens, self.tokenizer, self.context_length) or "length"
        return group

    def log_likelihoods(self, pairs: Sequence[Pair]) -> list[tuple[float, bool]]:
        """The log-likelihood of each continuation, and whether it is the greedy one; long texts are cut left."""
        found: list[tuple[float, bool]] = []
        for first in range(0, len(pairs), N_AT_ONCE):
            group = pairs[first : first + N_AT_ONCE]
            # One token fewer than `suites.scoring` reads of a text that is too long, since vLLM always adds one.
            texts = [[*context, *continuation][-(self.context_length - 1) :] for context, continuation in group]
            for (_, continuation), text, output in zip(group, texts, self._outputs(texts), strict=True):
                start = max(1, len(text) - len(continuation))
                rows = [output.prompt_logprobs[i][text[i]] for i in range(start, len(text))]
                found.append((sum(row.logprob for row in rows), all(row.rank == 1 for row in rows)))
        return found

    def close(self) -> None:
        """Free vLLM's memory."""
        self._llm = None
        gc.collect()

    def _outputs(self, prompts: Sequence[list[int]], requests: Sequence[Request] | None = None) -> list[Any]:
        given = [{"prompt_token_ids": prompt} for prompt in prompts]
        sampling = [self._sampling(request) for request in requests or ()]
        only_read = self._vllm.SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=1, detokenize=False)
        return list(self._llm.generate(given, sampling or only_read, use_tqdm=False))

    def _sampling(self, request: Request) -> Any:
        """The settings of a request."""
        own = request.settings
        longest = min(own.max_new_tokens, self.context_length - len(request.prompt_ids))
        return self._vllm.SamplingParams(
            max_tokens=max(1, longest), temperature=0.0 if own.is_greedy else own.temperature,
            top_k=own.top_k or 0, top_p=own.top_p or 1.0, seed=own.seed,  # what vLLM has for null
            repetition_penalty=own.repetition_penalty, stop_token_ids=[self.tokenizer.eot_id], stop=list(own.stop),
        )  # fmt: skip
