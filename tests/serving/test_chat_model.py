"""Several finished models side by side: what they have in common is in memory once."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from instruct_lit.core.bundle import open_model, save_bundle
from instruct_lit.core.data.example import Example
from instruct_lit.core.data.tokenizer import GPT2Tokenizer
from instruct_lit.core.generation.engine import Engine
from instruct_lit.core.generation.request import Request
from instruct_lit.core.generation.sampling import SamplingSettings
from instruct_lit.core.model.pretrained import load_gpt
from instruct_lit.hf.adapters import Adapter
from instruct_lit.hf.source import HFSource
from instruct_lit.serving.chat_model import ChatModel, open_chat_models, shown_name
from instruct_lit.serving.completions import CompletionService, Job
from instruct_lit.serving.protocol import ChatBody, CompletionBody, Message
from instruct_lit.serving.scheduler import Update
from instruct_lit.serving.tool_calls import Reading
from tests.hf.test_tokenizer import sentencepiece
from tests.serving.conftest import ALPACA, greedy, tiny_chat_model

GENERATION = {**vars(SamplingSettings()), "stop": []}


def test_adapters_on_one_base_share_its_weights_and_answer_as_alone(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    save_bundle(tmp_path / "base", tiny_chat_model(ALPACA).model, GPT2Tokenizer(), ALPACA, GENERATION, {})
    base = HFSource(str(tmp_path / "base"))
    for seed, name in enumerate(("one", "two")):
        model = load_gpt(base.path)
        adapter = Adapter(model, rank=2)
        random = torch.Generator().manual_seed(seed)
        for parameter_name, parameter in model.named_parameters():
            if "lora_" in parameter_name:
                parameter.data.normal_(0, 0.5, generator=random)
        save_bundle(tmp_path / name, model, GPT2Tokenizer(), ALPACA, GENERATION, {}, partial(adapter.save, base=base))
    runs = [str(tmp_path / name) for name in ("one", "two", "base")]
    chat_models = open_chat_models(runs, None, "cpu")
    parameters = [dict(chat_model.model.named_parameters()) for chat_model in chat_models]
    own = [{n for n, p in of.items() if parameters[0][n].data_ptr() != p.data_ptr()} for of in parameters[:2]]
    assert own[0] == set() and own[1] == {name for name in parameters[1] if "lora_" in name}
    of_first = {p.data_ptr() for p in parameters[0].values()}
    assert all(p.data_ptr() in of_first for p in parameters[2].values())  # the base itself is all there

    answers = []
    for run, chat_model in zip(runs, chat_models, strict=True):
        opened = open_model(run)
        alone = ChatModel("alone", opened.model.eval(), opened.tokenizer, opened.template)
        prompt = chat_model.prompt_ids(Example("Name a colour.", ""))
        answers.append(greedy(chat_model, prompt, 12))
        assert answers[-1] == greedy(alone, prompt, 12)
    assert len(set(answers)) == 3


def test_a_folders_name_is_shown_in_one_line_of_plain_characters() -> None:
    assert shown_name("2026-01-01 ünï [x]") == "2026-01-01 ünï [x]"
    assert shown_name("a\n\tb \x1b[2J\udcff") == "a b \\x1b[2J?"


def test_texts_to_be_continued_begin_as_the_tokenizer_begins_a_text(llama_directory: Path) -> None:
    """Which a model's own chat template writes itself, so that its prompts have it once."""
    (chat_model,) = open_chat_models([str(llama_directory)], None, "cpu")
    assert chat_model.tokenizer.prompt_start == ()
    service = CompletionService(chat_model, Engine(chat_model.model, chat_model.tokenizer), SamplingSettings())
    hf = chat_model.tokenizer.hf
    for text in ("the cat", "<s>the cat"):
        body = CompletionBody(model=chat_model.name, prompt=text)
        assert [ids for ids, _ in service.prompts(body)] == [hf("the cat")["input_ids"]]
    assert chat_prompt(service, [("user", "the cat")]) == rendered(hf, [("user", "the cat")])


def test_a_continued_text_has_the_space_that_the_tokenizer_removes() -> None:
    import tokenizers

    tokenizer = sentencepiece("prepend")
    steps = tokenizers.decoders
    whole = steps.Sequence([steps.Replace("\u2581", " "), steps.ByteFallback(), steps.Fuse(), steps.Strip(" ", 1, 0)])
    tokenizer.hf.backend_tokenizer.decoder = whole
    chat_model = ChatModel("sp", tiny_chat_model(ALPACA).model, tokenizer, ALPACA)
    service = CompletionService(chat_model, Engine(chat_model.model, tokenizer), SamplingSettings())
    texts = {}
    for kind in (ChatBody(model="sp", messages=[]), CompletionBody(model="sp", prompt="It")):
        for ids in ([265, 265], [264, 265], [261, 265], [261], []):
            update = Update(Request([1], SamplingSettings(), ids=ids), tokenizer.decode(ids), len(ids), None)
            texts.setdefault(type(kind), []).append(service.shown(Job(kind, [], {}, Reading()), update).text)
    assert texts == {ChatBody: ["It It", "It It", " It", "", ""], CompletionBody: [" It It", "It It", "  It", " ", ""]}


@pytest.mark.parametrize(("top_k", "expected"), [(0, None), (-1, None), (3, 3), (None, 5)])
def test_a_call_may_lift_the_servers_top_k(top_k: int | None, expected: int | None) -> None:
    chat_model = tiny_chat_model(ALPACA)
    engine = Engine(chat_model.model, chat_model.tokenizer)
    service = CompletionService(chat_model, engine, SamplingSettings(temperature=1, top_k=5))
    assert service.settings(CompletionBody(model="tiny", prompt="x", top_k=top_k)).top_k == expected


def chat_prompt(service: CompletionService, said: list[tuple[str, str]]) -> list[int]:
    messages = [Message(role=role, content=text) for role, text in said]  # type: ignore[arg-type]
    ((ids, _),) = service.prompts(ChatBody(model=service.chat_model.name, messages=messages))
    return list(ids)


def rendered(hf: Any, said: list[tuple[str, str]]) -> list[int]:
    messages = [{"role": role, "content": text} for role, text in said]
    return hf.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)


def test_system_messages_stand_where_a_models_own_template_puts_them(llama_directory: Path) -> None:
    (chat_model,) = open_chat_models([str(llama_directory)], None, "cpu")
    service = CompletionService(chat_model, Engine(chat_model.model, chat_model.tokenizer), SamplingSettings())
    begun = [("system", "the dog"), ("user", "the cat"), ("assistant", "the dog")]
    for said in ([begun[0], *begun[:2]], [*begun, ("system", "a word"), ("user", "and")]):
        assert chat_prompt(service, said) == rendered(chat_model.tokenizer.hf, said)
    assert chat_prompt(service, [("system", ""), *begun[:2]]) == rendered(chat_model.tokenizer.hf, begun[:2])
