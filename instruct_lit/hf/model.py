"""Any causal model of transformers with the interface of our GPT: packed batches, shared prefixes, cached generation.

Models of transformers take their attention function from a registry. Ours passes queries, keys and values to the layout
(`instruct_lit.core.model.attention`), so everything that runs on our GPT runs on a Llama. Whether this is exact for an
architecture is measured when the model is opened: packed documents must get the states that each gets alone, and the
head must give the model's own logits.
"""

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from instruct_lit.core.model.attention import AttentionLayout, CausalRows, PackedDocuments
from instruct_lit.core.model.causal import CausalLM
from instruct_lit.errors import ConfigError
from instruct_lit.hf.attention import NAME, attend, hide_from_compiler
from instruct_lit.hf.blocks import BlockForward
from instruct_lit.hf.compat_transformers import attention_name, register_attention
from instruct_lit.hf.configuration import chunk_of, context_length_of, logit_cap, logit_scale, n_chosen_experts
from instruct_lit.hf.own_cache import OwnCache, is_exact
from instruct_lit.hf.probe import (
    NotSupportedError,
    Spy,
    check_causal,
    difference,
    short_windows,
    window_of,
)

TOLERANCE = 1e-4  # relative difference in fp32 up to which two results count as equal
OWN_CACHE_TOLERANCE = 0.05  # of states in half precision; padding that is seen changes them many times as much
LENGTHS, PREFIX = (4, 3), 4  # tokens of the two documents, and of the prefix before both, that models are measured with
TOKENS = [*range(8)], [*range(4), *range(8, 11)]  # of each document behind the prefix
POSITIONS = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 4, 5, 6])
HALF_TOLERANCE = 0.02  # of logits in half precision; a soft cap or a scale changes them many times as much


@dataclass(frozen=True)
class HFShape:
    """The sizes of a model of transformers; `kv_heads` is empty where attention layouts are not supported."""

    architecture: str
    n_vocab: int
    context_length: int
    d_model: int
    n_chosen_experts: int | None  # of each token; None for a model without experts
    kv_heads: tuple[tuple[int, int], ...] = ()


class HFModel(CausalLM):
    """A model of transformers; `hf` is the model itself.

    `context_length` may be lower than the model's own. A model that attends in chunks supports attention layouts for
    texts within one only; rows without a layout get transformers' own masks. `is_text_part`: read from the files of a
    model of images or sound. ConfigError as the measurements find: not causal, another head, other inputs.
    """

    def __init__(self, hf: Any, context_length: int | None = None, activation_checkpointing: int = False) -> None:
        super().__init__()
        self.hf, self.activation_checkpointing, self.is_text_part = hf, activation_checkpointing, False
        self._own_cache_is_exact: bool | None = None  # measured when it is first asked for
        self._last: BlockForward | None = None  # of the last block if it can compute selected tokens only
        self.is_half = any(p.dtype == torch.bfloat16 for p in hf.parameters())
        self._scale, self.logit_cap = logit_scale(hf.config), logit_cap(hf.config)
        if not isinstance(getattr(hf.get_output_embeddings(), "weight", None), Tensor):
            raise ConfigError(f"model: {type(hf).__name__} has no single output matrix; choose another model")
        n_vocab, d_model = self.head_weight.shape
        length = context_length_of(hf.config, context_length)
        self.config = HFShape(type(hf).__name__, n_vocab, length, d_model, n_chosen_experts(hf.config))
        self._probe()
        self._noise_embeddings()
        for block in self.blocks[::activation_checkpointing] if activation_checkpointing else ():
            BlockForward.of(block).recomputes = True

    def _noise_embeddings(self) -> None:
        embedding = self.hf.get_input_embeddings()
        self._noise_hook = embedding.register_forward_hook(self._embedded)  # a copy of the model has its own

    def _embedded(self, module: Any, inputs: Any, output: Tensor) -> Tensor:
        embeddings = self.noised(output)
        if self._compiles() and torch.is_grad_enabled() and not embeddings.requires_grad:
            # Frozen embeddings: otherwise the first block would be compiled by itself, without a gradient of its input.
            embeddings.requires_grad_()
        return embeddings

    def _compiles(self) -> bool:
        return self.compiler is not None and self.training

    def vocabulary_changed(self) -> None:
        """Update the size, and the noise on the embedding, after embedding and head were resized."""
        self.config = replace(self.config, n_vocab=len(self.head_weight))
        self._noise_hook.remove()
        self._noise_embeddings()

    @property
    def head_weight(self) -> Tensor:
        head = self.hf.get_output_embeddings()
        bias = getattr(head, "bias", None)
        # A bias is one more column, and the states have a 1 there.
        return head.weight if bias is None else torch.cat((head.weight, bias[:, None]), dim=1)

    @property
    def _body(self) -> Any:
        """The model without its head."""
        body = self.hf.base_model  # by its name, the model itself where that is wrong (Llama 4)
        return getattr(self.hf, "model", body) if body is self.hf else body

    @property
    def n_parameters(self) -> int:
        return self.hf.num_parameters()  # those of 4 bits lie two in a byte

    @property
    def blocks(self) -> torch.nn.ModuleList:  # type: ignore[override]
        lists = (m for m in self._body.modules() if isinstance(m, torch.nn.ModuleList))
        return max(lists, key=len)  # experts of a layer may be a list too, but they are inside this one

    @property
    def head_parameters(self) -> list[torch.nn.Parameter]:
        return list(self.hf.get_output_embeddings().parameters())

    @property
    def final_norm(self) -> torch.nn.Module:
        inside = {id(m) for m in self.blocks.modules()}
        outside = [m for n, m in self._body.named_modules() if "norm" in n or n.endswith("ln_f")]
        return next((m for m in reversed(outside) if id(m) not in inside), torch.nn.Identity())  # OPT 350M has none

    def hidden_states(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        layout: AttentionLayout | None = None,
        index: Tensor | None = None,
    ) -> Tensor:
        if index is None:
            return self._all_states(input_ids, position_ids, layout)
        if self._last is None or layout is None:
            return self._all_states(input_ids, position_ids, layout).flatten(0, -2).index_select(0, index)
        self._last.index = index
        try:
            return self._all_states(input_ids, position_ids, layout).flatten(0, -2)
        finally:
            self._last.index = None

    def _all_states(self, input_ids: Tensor, position_ids: Tensor | None, layout: AttentionLayout | None) -> Tensor:
        if layout is None:
            return self._states(input_ids=input_ids)
        assert self.layout_length > 0 or (self.takes_rows and isinstance(layout, CausalRows)), self.no_layouts
        flat = input_ids.ndim == 1
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[-1], device=input_ids.device).expand_as(input_ids)
        if flat:
            input_ids, position_ids = input_ids[None], position_ids[None]
        # transformers passes a mask of four axes unchanged, so it makes none; the layout masks.
        unused = torch.empty(1, 1, 1, 1, device=input_ids.device)
        states = self._states(
            input_ids=input_ids, position_ids=position_ids, attention_mask=unused, layout=(layout, flat)
        )
        return states[0] if flat else states

    def _states(self, **inputs: Any) -> Tensor:
        with self._compiled_blocks() if self._compiles() else nullcontext(), self._in_half():
            states = self._body(**{"use_cache": False, **inputs}).last_hidden_state
        device = states.device.type
        if self.is_half and not torch.is_autocast_enabled(device):  # the final norm may be in fp32, the head not
            states = states.to(self.head_weight.dtype)
        if getattr(self.hf.get_output_embeddings(), "bias", None) is not None:
            states = torch.cat((states, torch.ones_like(states[..., :1])), dim=-1)
        return states if self._scale == 1 else states * self._scale

    def own_cache(self) -> OwnCache | None:
        if self._own_cache_is_exact is False:
            return None
        cache = OwnCache(self._states, self._body)
        if self._own_cache_is_exact is None:
            in_half = self.is_half or torch.is_autocast_enabled(self.head_weight.device.type)
            tolerance = OWN_CACHE_TOLERANCE if in_half else TOLERANCE
            self._own_cache_is_exact = is_exact(cache, self.config.n_vocab, tolerance)
        return cache if self._own_cache_is_exact else None

    def _in_half(self) -> AbstractContextManager[Any]:
        """Autocast if weights are in bf16, which trained ones are not, and the caller has not chosen a precision."""
        device = self.head_weight.device.type
        wanted = self.is_half and not torch.is_autocast_enabled(device)
        return torch.autocast(device, torch.bfloat16, cache_enabled=False) if wanted else nullcontext()

    @contextmanager
    def _compiled_blocks(self) -> Iterator[None]:
        """Let all blocks run by one compiled function, which the attention interrupts."""
        hide_from_compiler()
        forwards = [BlockForward.of(block) for block in self.blocks]
        for forward in forwards:
            forward.compiler = self.compiler
        try:
            yield
        finally:
            for forward in forwards:
                forward.compiler = None

    @torch.no_grad()
    def _probe(self) -> None:
        """Measure on a few tokens whether head and layouts are exact; the head must be."""
        self.hf.eval()
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(0, self.config.n_vocab, (11,), generator=generator).to(self.head_weight.device)
        first = ids[:8]
        try:
            alone = self._alone(ids)
            expected_logits, expected_large = self.logits(alone[0]), self.logits(alone[0] * 1000)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # unknown code may need anything
            raise ConfigError(
                f"model: {self.config.architecture} gives no states and logits for token ids alone ({_shown(error)}); "
                "choose another model"
            ) from error
        with self._in_half():
            logits = self.hf(input_ids=first[None], use_cache=False).logits[0]
            # Scaled by 1000: a soft cap that is not known does not change the small logits of random tokens measurably.
            with self.hf.get_output_embeddings().register_forward_hook(lambda head, inputs, output: output * 1000):
                large = self.hf(input_ids=first[None], use_cache=False).logits[0]
        tolerance = HALF_TOLERANCE if self.is_half else TOLERANCE
        check_causal(self.config.architecture, expected_logits, (alone[0][:PREFIX], alone[1][:PREFIX]), tolerance)
        if not (difference(expected_logits, logits) <= tolerance and difference(expected_large, large) <= tolerance):
            raise ConfigError(
                f"model: {self.config.architecture} computes its logits by more than its head (an unknown soft cap "
                "or scale, another layer), so its loss would be wrong; choose another model"
            )
        expected = torch.cat((alone[0], alone[1][PREFIX:]))
        if self.is_half:  # rounding differs less than documents that see each other
            tolerance = difference(self.hidden_states(ids[None])[0], expected) / 4
        before = attention_name(self.hf)
        self.layout_length, self.no_layouts = self._try_layouts(ids, expected, tolerance)
        window = window_of(self.hf)
        if self.layout_length > window < self.config.context_length and not self._windows_are_exact(ids, tolerance):
            self.layout_length, self.no_layouts = window, f"its layers attend to the last {window} tokens only"
        if self.layout_length < math.inf:
            self.takes_rows = self.layout_length == 0 and self._rows_are_exact(ids, alone[0], tolerance)
        if not (self.layout_length or self.takes_rows):
            self.hf.set_attn_implementation(before)
        self.hf.train()  # transformers opens models in evaluation mode: no dropout, no activation checkpointing

    def _alone(self, ids: Tensor) -> list[Tensor]:
        """The states of each document by itself, behind the prefix."""
        return [self.hidden_states(ids[None, tokens])[0] for tokens in TOKENS]

    def _try_layouts(self, ids: Tensor, expected: Tensor, tolerance: float) -> tuple[float, str | None]:
        """Switch to our attention function if packed documents get the states they have alone.

        Returns the length of text up to which they do, and why longer ones do not.
        """
        spy = Spy(LENGTHS, PREFIX)
        try:
            register_attention(NAME, attend)
            self.hf.set_attn_implementation(NAME)
            states = self.hidden_states(ids, POSITIONS.to(ids.device), spy)
            if not spy.kv_heads or not difference(states, expected) <= tolerance:
                reason = "packed documents do not get the states that they have alone"
            elif len(spy.kv_heads) != len(self.blocks) or spy.n_calls != len(self.blocks):
                reason = "not all of its layers attend once"
            else:
                self.config = replace(self.config, kv_heads=tuple(heads for _, heads in sorted(spy.kv_heads.items())))
                self._try_selection(ids, expected, tolerance, spy.attention)
                chunk = chunk_of(self.hf.config)
                if chunk >= self.config.context_length:
                    return math.inf, None
                return chunk, f"its layers attend within chunks of {chunk} tokens"
        except NotSupportedError as error:
            reason = str(error)
        except Exception as error:  # unknown code may reject the arguments in any way
            reason = f"its code does not support them ({_shown(error)})"
        return 0, reason

    def _rows_are_exact(self, ids: Tensor, first: Tensor, tolerance: float) -> bool:
        """Whether padded rows get the states that they have alone, also where packed documents do not.

        `first` are the states of the first text by the model's own attention function.
        """
        if chunk_of(self.hf.config) < self.config.context_length:
            return False
        try:
            if difference(self._alone(ids)[0], first) > tolerance:
                return False
            with short_windows(self.hf, 3):
                alone = self._alone(ids)
                texts = torch.nn.utils.rnn.pad_sequence([ids[tokens] for tokens in TOKENS], batch_first=True)
                rows = self.hidden_states(texts, layout=CausalRows())
        except Exception:  # as above
            return False
        return all(difference(row[: len(own)], own) <= tolerance for row, own in zip(rows, alone, strict=True))

    def _windows_are_exact(self, ids: Tensor, tolerance: float) -> bool:
        """Whether packed documents get the states they have alone if the model's windows are shorter than they are."""
        with short_windows(self.hf, 3):
            alone = self._alone(ids)
            states = self.hidden_states(ids, POSITIONS.to(ids.device), PackedDocuments(LENGTHS, PREFIX))
        return difference(states, torch.cat((alone[0], alone[1][PREFIX:]))) <= tolerance

    def _try_selection(self, ids: Tensor, expected: Tensor, tolerance: float, attention: Any) -> None:
        """Let the last block compute selected tokens only after its attention, if their states stay the same."""
        self._last, index = BlockForward.of(self.blocks[-1]), torch.tensor([3, 5, 5, 10], device=ids.device)
        self._last.attention = attention
        try:
            states = self.hidden_states(ids, POSITIONS.to(ids.device), PackedDocuments(LENGTHS, PREFIX), index)
            exact = states.shape == (4, expected.shape[-1]) and difference(states, expected[index]) <= tolerance
        except Exception:  # code that expects all tokens behind the last block
            exact = False
        if not exact:
            del self._last.block.forward
            self._last = None


def _shown(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
