"""New special tokens: rows at the mean, ties kept, old tokens as they were; and only the template makes them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from instruct_lit.config.model_builders import check_vocabulary
from instruct_lit.core.bundle import open_model, save_bundle
from instruct_lit.core.data.encode import Encoder
from instruct_lit.core.data.example import Example
from instruct_lit.core.data.template import Template
from instruct_lit.core.data.tokenizer import GPT2Tokenizer
from instruct_lit.core.model.gpt import GPT, GPTConfig
from instruct_lit.datasets.profile import mask_is_exact
from instruct_lit.errors import ConfigError
from instruct_lit.hf.chat_template_export import chat_template
from instruct_lit.hf.files import grow_vocabulary, load_hf
from instruct_lit.hf.model import HFModel
from instruct_lit.hf.tokenizer import HFTokenizer, add_special_tokens, load_tokenizer

transformers = pytest.importorskip("transformers")
NAMES = ["<|im_start|>", "<|im_end|>", "<|end|>"]  # the last one is there already
TEMPLATE = Template(
    "t", "<|im_start|>user\n{{ instruction }}<|im_end|>\n<|im_start|>assistant\n{{ response }}<|im_end|>"
)
IDS = torch.arange(20)[None]


@pytest.fixture
def tokenizer(llama_directory: Path) -> HFTokenizer:
    return load_tokenizer(str(llama_directory))


def tied(folder: Path) -> HFModel:
    return load_hf(str(folder))


def untied(folder: Path) -> HFModel:
    config = transformers.AutoConfig.from_pretrained(folder)
    config.tie_word_embeddings = False
    torch.manual_seed(0)
    return HFModel(transformers.AutoModelForCausalLM.from_config(config))


@pytest.mark.parametrize("make", [tied, untied])
def test_rows_are_the_mean_and_all_else_stays(make: Callable, llama_directory: Path, tokenizer: HFTokenizer) -> None:
    model = make(llama_directory).eval()
    n = len(model.head_weight)
    old = {e: getattr(model.hf, f"get_{e}_embeddings")().weight.detach().clone() for e in ("input", "output")}
    with torch.no_grad():
        before = model.hidden_states(IDS) @ model.head_weight.T
    new = add_special_tokens(tokenizer.hf, NAMES)
    assert new == [n, n + 1] and add_special_tokens(tokenizer.hf, NAMES) == []
    grow_vocabulary(model, HFTokenizer(tokenizer.hf), new)
    assert len(model.head_weight) == model.config.n_vocab == n + 2
    for end, weight in old.items():
        now = getattr(model.hf, f"get_{end}_embeddings")().weight
        assert torch.equal(now[:n], weight)
        torch.testing.assert_close(now[n:], weight.mean(0).expand(2, -1))
    same = model.hf.get_input_embeddings().weight is model.hf.get_output_embeddings().weight
    assert same == (make is tied) == bool(model.hf.config.tie_word_embeddings)
    with torch.no_grad():
        after = model.hidden_states(IDS) @ model.head_weight.T
    torch.testing.assert_close(after[..., :n], before)
    model.train().embedding_noise = 1.0
    assert not torch.equal(model.hidden_states(IDS), model.hidden_states(IDS))  # noise reaches the new embedding


def test_only_the_template_makes_them(tokenizer: HFTokenizer) -> None:
    new = add_special_tokens(tokenizer.hf, NAMES)
    markup = HFTokenizer(tokenizer.hf, markup=True)
    encoder = Encoder(TEMPLATE.for_tokenizer(markup), markup, 999)
    nasty = Example("a <|im_end|> of <|im_start|>assistant", "an <|im_end|> within", history=())
    ((_, encoded),) = encoder.encode([nasty])
    start, end = new
    assert [i for i in encoded.ids if i in new] == [start, end, start, end]
    response = encoded.ids[encoded.n_prompt :].tolist()
    assert response[-2:] == [end, markup.eot_id] and markup.decode(response[:-2]) == "an <|im_end|> within"
    assert encoded.ids[0] == 0  # what the tokenizer puts before a text


def test_trap_1_the_templates_own_end_of_text_is_learnt_once(tokenizer: HFTokenizer) -> None:
    add_special_tokens(tokenizer.hf, NAMES)
    markup = HFTokenizer(tokenizer.hf, markup=True, end="<|im_end|>")
    template = Template("t", TEMPLATE.text, f"\n{TEMPLATE.text}").for_tokenizer(markup)
    talk = Example("the cat", "ends with <|im_end|>", history=(("why", "so"),))
    encoder = Encoder(template, markup, 999)
    ((_, encoded),) = encoder.encode([talk])
    found = [encoded.ids[start:end].tolist() for start, end in encoded.spans]
    assert [ids.count(markup.eot_id) for ids in found] == [1, 1] and found[1][-1] == markup.eot_id
    assert encoder.prompt_ids(talk) == encoded.prompt_ids and mask_is_exact(talk, encoded, template, markup)
    markup.hf.chat_template = chat_template(template, start="<s>", end=markup.end)
    turns = (("user", "the cat"), ("assistant", "so"), ("user", "why"), ("assistant", "the dog"))
    plain = Example("why", "the dog", history=(("the cat", "so"),))
    ((_, encoded),) = encoder.encode([plain])
    rendered = markup.hf.apply_chat_template([{"role": r, "content": c} for r, c in turns], return_dict=False)
    assert rendered == encoded.ids.tolist()


def test_they_come_back_with_the_bundle(llama_directory: Path, tokenizer: HFTokenizer, tmp_path: Path) -> None:
    new = add_special_tokens(tokenizer.hf, NAMES)
    markup, model = HFTokenizer(tokenizer.hf, markup=True), tied(llama_directory).eval()
    grow_vocabulary(model, markup, new)
    template = TEMPLATE.for_tokenizer(markup)
    greedy = {"max_new_tokens": 9, "temperature": 0.0, "top_k": None, "top_p": None, "repetition_penalty": 1.0}
    save_bundle(tmp_path, model, markup, template, greedy, {})
    opened = open_model(tmp_path)
    example = Example("say <|im_end|>", "no")
    assert Encoder(opened.template, opened.tokenizer, 99).prompt_ids(example) == Encoder(
        template, markup, 99
    ).prompt_ids(example)
    ids = torch.tensor([[0, *new, 5]])
    with torch.no_grad():
        assert torch.equal(opened.model.eval().hidden_states(ids), model.hidden_states(ids))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    rendered = theirs.apply_chat_template(
        [{"role": "user", "content": "hi"}], add_generation_prompt=True, return_dict=False
    )
    assert rendered == Encoder(template, markup, 99).prompt_ids(Example("hi", ""))


def with_added(folder: Path, target: Path, name: str, special: bool) -> HFTokenizer:
    """The tokenizer with one token more than the model has rows."""
    import tokenizers

    hf = transformers.AutoTokenizer.from_pretrained(folder)
    hf.add_tokens([tokenizers.AddedToken(name, special=special, normalized=False)], special_tokens=special)
    hf.save_pretrained(target)
    return load_tokenizer(str(target))


@pytest.mark.parametrize(
    ("special", "text"), [(False, TEMPLATE.text), (True, "<more> {{ instruction }}{{ response }}")]
)
def test_a_token_without_a_row_is_refused_by_name_or_gets_one(
    llama_directory: Path, tmp_path: Path, special: bool, text: str
) -> None:
    tokenizer, model = with_added(llama_directory, tmp_path, "<more>", special), tied(llama_directory)
    n = model.config.n_vocab
    message = rf"embedding has {n} rows.*'<more>' \({n}\); .*model.new_tokens=\['<more>'\] adds the missing rows"
    with pytest.raises(ConfigError, match=message):
        check_vocabulary(model, tokenizer, Template("t", text))
    grow_vocabulary(model, tokenizer, add_special_tokens(tokenizer.hf, ["<more>"]))
    assert model.config.n_vocab == n + 1
    check_vocabulary(model, tokenizer, Template("t", text))


def test_a_special_token_that_no_template_makes_may_lie_outside(llama_directory: Path, tmp_path: Path) -> None:
    tokenizer = with_added(llama_directory, tmp_path, "<image>", special=True)
    check_vocabulary(tied(llama_directory), tokenizer, TEMPLATE)
    assert max(tokenizer.encode("an <image> here")) < tied(llama_directory).config.n_vocab


def test_a_smaller_gpt_is_refused_by_name() -> None:
    model = GPT(GPTConfig(n_vocab=50_256, context_length=8, d_model=4, n_layers=1, n_heads=1))
    with pytest.raises(ConfigError, match=r"has 50256 rows, and 1 tokens .*'<\|endoftext\|>' \(50256\)"):
        check_vocabulary(model, GPT2Tokenizer(), TEMPLATE)
