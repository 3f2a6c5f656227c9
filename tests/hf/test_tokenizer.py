"""A tokenizer of transformers: users' texts never become special tokens, templates' do."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instruct_lit.core.data.encode import Encoder
from instruct_lit.core.data.example import Example
from instruct_lit.core.data.template import Template
from instruct_lit.datasets.profile import mask_is_exact, response_texts
from instruct_lit.datasets.split_groups import prompt_text
from instruct_lit.errors import ConfigError, TemplateError
from instruct_lit.hf.chat_template import ChatTemplate, with_chat
from instruct_lit.hf.chat_template_export import chat_template as export
from instruct_lit.hf.special_tokens import GUARD, unprotected
from instruct_lit.hf.tokenizer import HFTokenizer, load_tokenizer

pytest.importorskip("transformers")
TEXTS = ["the cat", " é🙂\n\n\ttabs", "<|end|> inside", "中文</s>", f"{GUARD}<|user|>{GUARD * 2}", ""]
PIECES = st.sampled_from(["<|user|>", "<|end|>", "<s>", "</s>", GUARD, "<|", "|>", "end", "the cat", "\n", " ", "🙂"])
USER_TEXT = st.lists(PIECES | st.text(max_size=8), max_size=8).map("".join)


@pytest.fixture(scope="module")
def plain(llama_directory: Path) -> HFTokenizer:
    return load_tokenizer(str(llama_directory))


@pytest.fixture(scope="module")
def chat(plain: HFTokenizer) -> tuple[HFTokenizer, Template]:
    return with_chat(plain)


def special_ids(tokenizer: HFTokenizer) -> set[int]:
    return set(tokenizer.hf.added_tokens_decoder)


@pytest.mark.parametrize("text", TEXTS)
def test_trap_4_without_markup_every_text_is_ordinary(plain: HFTokenizer, text: str) -> None:
    ids = plain.encode(text)
    assert plain.decode(ids) == text and not special_ids(plain) & set(ids)
    assert plain.encode_batch([text, "x"])[0] == ids


def test_what_it_puts_before_a_text_stands_before_prompts_only(plain: HFTokenizer, chat) -> None:
    assert plain.prompt_start == (0,) and chat[0].prompt_start == ()
    encoder = Encoder(Template("t", "Q: {{ instruction }} A: {{ response }}"), plain, 99)
    ((_, encoded),) = encoder.encode([Example("the cat", "the dog")])
    assert encoded.prompt_ids == encoder.prompt_ids(Example("the cat", "")) == [0, *plain.encode("Q: the cat A: ")]
    assert encoded.ids[encoded.n_prompt :].tolist() == [*plain.encode("the dog"), plain.eot_id]


ZEPHYR = (
    "{{ bos_token }}{% for m in messages %}{{ '<|' + m['role'] + '|>\\n' + m['content'] + eos_token + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST]' + m['content'] + '[/INST]' }}"
    "{% else %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}"
)


def sentencepiece(kind: str, chat_template: str | None = None) -> HFTokenizer:
    """A tokenizer that writes spaces as SentencePiece does, one before each text (`kind`)."""
    import tokenizers
    import transformers

    specials = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"]
    names = [*specials, *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", "I", "t", "It", "\u2581It", "\u2581I"]
    merges = [("I", "t"), ("\u2581", "It"), ("\u2581", "I")]
    bpe = tokenizers.Tokenizer(
        tokenizers.models.BPE({name: n for n, name in enumerate(names)}, merges, byte_fallback=True, unk_token="<unk>")
    )
    replace_spaces = tokenizers.normalizers.Replace(" ", "\u2581")
    if kind == "prepend":
        prepend = tokenizers.normalizers.Prepend("\u2581")
        bpe.normalizer = tokenizers.normalizers.Sequence([prepend, replace_spaces])
    else:
        bpe.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme=kind, split=False)
    bpe.add_special_tokens([tokenizers.AddedToken(name, special=True, normalized=False) for name in specials])
    bpe.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    hf = transformers.PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>")
    hf.chat_template = chat_template
    return HFTokenizer(hf)


@pytest.mark.parametrize("chat_template", [ZEPHYR, MISTRAL, None])
@pytest.mark.parametrize("kind", ["prepend", "first", "always", "never"])
def test_a_text_within_a_conversation_gets_no_space_that_the_whole_lacks(kind: str, chat_template: str | None) -> None:
    tokenizer = sentencepiece(kind, chat_template)
    if chat_template:
        tokenizer, template = with_chat(tokenizer)
    else:
        turn = "User: {{ instruction }}\nAnswer:\n{{ response }}"
        template = Template("t", turn, next_turn=f"\n{turn}")
        start = tokenizer.hf.decode(list(tokenizer.prompt_start))
        tokenizer.hf.chat_template = export(template, start, tokenizer.end)
    said = ["What is It?", "It is.", "And now?", "It was."]
    messages = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(said)]
    example = Example(said[2], said[3], history=((said[0], said[1]),))
    ((_, encoded),) = Encoder(template, tokenizer, 999).encode([example])
    whole = tokenizer.hf.apply_chat_template(messages, return_dict=False)
    assert encoded.ids.tolist() == [*whole[: len(encoded.ids) - 1], tokenizer.eot_id]
    ends = [start for start, _ in encoded.spans]
    prompts = [
        tokenizer.hf.apply_chat_template(messages[:n], add_generation_prompt=True, return_dict=False) for n in (1, 3)
    ]
    assert [encoded.ids[:end].tolist() for end in ends] == prompts
    assert template.prompt_ids(replace(example, output=""), tokenizer) == prompts[-1]
    assert tokenizer.encode("It") == tokenizer.encode("It", []) == [264 if kind == "never" else 265]
    assert tokenizer.encode("It", [262]) == [264]
    behind_special = tokenizer.encode("It", [tokenizer.eot_id])
    assert behind_special == [265 if kind in ("prepend", "always") else 264]


def test_text_of_byte_tokens_only_grows() -> None:
    """tokenizers replaces all bytes in a row where the last character is incomplete, so a chat wrote emoji twice."""
    import tokenizers

    tokenizer = sentencepiece("never")
    steps = tokenizers.decoders
    whole = steps.Sequence([steps.Replace("\u2581", " "), steps.ByteFallback(), steps.Fuse()])
    tokenizer.hf.backend_tokenizer.decoder = whole
    ids = [266, *(5 + byte for byte in "👍你".encode() + b"\xff"), 266]
    texts = [tokenizer.decode(ids[:n]) for n in range(1, len(ids) + 1)]
    assert texts == [" I", *[" I\ufffd"] * 3, " I👍", *[" I👍\ufffd"] * 2, " I👍你", " I👍你\ufffd", " I👍你\ufffd I"]


def test_protected_text_of_users_gets_no_space_either() -> None:
    tokenizer, template = with_chat(sentencepiece("first", MISTRAL))
    plain, named = (template.prompt_ids(Example(text, ""), tokenizer) for text in ("It is", "It is</s>"))
    assert [named[: len(plain) - 1], named[-1]] == [plain[:-1], plain[-1]]
    assert len(named) == len(plain) + len("</s>") and tokenizer.eot_id not in named


@given(USER_TEXT)
def test_protection_is_undone_and_hides_every_special_token(plain: HFTokenizer, text: str) -> None:
    markup = HFTokenizer(plain.hf, markup=True)
    protected = markup.protect(text)
    assert unprotected(protected) == text
    ids = markup.encode(protected)
    assert not special_ids(markup) & set(ids) and markup.decode(ids) == text


def test_bytes_of_tokens_add_up(plain: HFTokenizer) -> None:
    for text in TEXTS:
        ids = plain.encode(text)
        assert plain.n_bytes_of[ids].sum() == len(text.encode())
        assert b"".join(plain.token_bytes(i) for i in ids) == text.encode()
    assert plain.n_bytes_of[plain.eot_id] == 0
    assert plain.token_bytes(plain.n_vocab + 7) == b""  # a row of the embedding that pads the vocabulary


def test_bytes_of_added_tokens_that_are_text_count() -> None:
    tokenizer = sentencepiece("never").hf
    tokenizer.add_tokens(["\n\n", "<think>", "\u2581\u2581"])  # as in Gemma's and Qwen's tokenizers
    added = HFTokenizer(tokenizer)
    ids = tokenizer.convert_tokens_to_ids(["\n\n", "<think>", "\u2581\u2581", tokenizer.eos_token])
    assert [added.token_bytes(token_id) for token_id in ids[:3]] == [b"\n\n", b"<think>", b"  "]
    assert added.n_bytes_of[ids].tolist() == [2, 7, 2, 0]


def test_the_added_tokens_are_asked_for_once(plain: HFTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers makes them anew at each call: asked at every token, a vocabulary of 262,144 takes minutes."""
    calls = []
    kind = type(plain.hf)
    made = kind.added_tokens_decoder.fget  # type: ignore[attr-defined]
    monkeypatch.setattr(kind, "added_tokens_decoder", property(lambda self: calls.append(1) or made(self)))
    tokenizer = HFTokenizer(plain.hf)
    assert tokenizer.n_bytes_of.sum() > 0 and tokenizer.token_bytes(5) == b"<|end|>"
    assert len(calls) == 1


def test_a_fingerprint_changes_with_what_changes_ids(plain: HFTokenizer, chat) -> None:
    assert plain.fingerprint == HFTokenizer(plain.hf).fingerprint != chat[0].fingerprint


def test_a_slow_tokenizer_is_refused() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(ConfigError, match="Slow is a slow tokenizer; one with a tokenizer.json is needed"):
        HFTokenizer(Slow())


def test_a_folder_without_a_tokenizer_is_named(llama_directory: Path, tmp_path: Path) -> None:
    shutil.copy(llama_directory / "config.json", tmp_path)
    with pytest.raises(
        ConfigError, match="model.path=.*: it has no tokenizer.json, and no other files .*put the model's"
    ):
        load_tokenizer(str(tmp_path))


def test_trap_5_our_prompt_is_what_transformers_renders(chat) -> None:
    tokenizer, template = chat
    example = Example("the cat", "the dog", "and")
    messages = [{"role": "user", "content": "the cat\n\nand"}]
    hf = tokenizer.hf
    prompt = hf.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert template.prompt(example) == prompt
    ids = hf.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert Encoder(template, tokenizer, 99).prompt_ids(example) == ids
    whole = hf.apply_chat_template([*messages, {"role": "assistant", "content": "the dog"}], tokenize=False)
    assert (
        template.prompt(example) + template.response(example) + "<|end|>\n" == whole and template.suffix(example) == ""
    )
    assert tokenizer.eot_id == hf.convert_tokens_to_ids("<|end|>") != hf.eos_token_id


@given(USER_TEXT, USER_TEXT)
def test_the_response_decodes_to_the_output_and_its_end_is_the_only_one(
    plain: HFTokenizer, asked: str, said: str
) -> None:
    tokenizer, template = with_chat(plain)
    ((_, encoded),) = Encoder(template, tokenizer, 10_000).encode([Example(asked, said)])
    response = encoded.ids[encoded.is_response]
    assert response[-1] == tokenizer.eot_id and tokenizer.decode(response[:-1]) == said
    # <s>, <|user|>, the end of the question, <|assistant|> and the end of the answer
    assert [i for i in encoded.ids if i in special_ids(tokenizer)] == [0, 2, 5, 3, 5]
    assert unprotected(template.prompt(Example(asked, ""))) == f"<s><|user|>\n{asked}<|end|>\n<|assistant|>\n"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (None, "template=chat: the model's chat template does not exist"),
        (
            "{% for m in messages if m['role'] == 'user' %}{{ m['content'] }}{% endfor %}",
            "does not render a response exactly once",
        ),
        ("{% for m in messages %}{{ m['content'] | upper }}{% endfor %}", "changes the response 'output' to 'OUTPUT'"),
        ("{{ raise_exception('no users here') }}", r"rejects the conversation \(no users here\)"),
    ],
)
def test_chat_templates_that_cannot_show_a_response_are_refused(
    llama_directory: Path, source: str | None, message: str
) -> None:
    tokenizer = load_tokenizer(str(llama_directory))
    tokenizer.hf.chat_template = source
    with pytest.raises(TemplateError, match=message):
        ChatTemplate(tokenizer)


def test_a_template_that_trims_and_ends_behind_a_space(llama_directory: Path) -> None:
    tokenizer = load_tokenizer(str(llama_directory))
    tokenizer.hf.chat_template = "{% for m in messages %}[{{ m['content'] | trim }} {{ eos_token }}]{% endfor %}"
    tokenizer, template = with_chat(tokenizer)
    # It has no generation prompt, so the model writes the bracket.
    assert template.response(Example("the cat", "  the dog\n")) == "[the dog " and template.suffix(TALK) == " "
    assert template.prompt(Example("the cat", "")) == "[the cat </s>]" and tokenizer.eot_id == tokenizer.hf.eos_token_id


TALK = Example("and <|end|>", "the end", "", {}, "be short", (("the cat", "the dog"), ("why", "<|user|> so")))


@pytest.mark.parametrize("loss_on", ["all", "last"])
def test_a_conversation_has_the_ids_of_transformers_and_a_mask_of_the_answers(chat, loss_on: str) -> None:
    tokenizer, template = chat
    ((_, encoded),) = Encoder(template, tokenizer, 10_000, "error", loss_on).encode([TALK])  # type: ignore[arg-type]
    answers = ["the dog", "<|user|> so", "the end"]
    assert response_texts(encoded, tokenizer) == (answers if loss_on == "all" else answers[-1:])
    assert mask_is_exact(TALK, encoded, template, tokenizer)
    assert encoded.prompt_ids == Encoder(template, tokenizer, 99).prompt_ids(TALK)
    assert all(encoded.ids[end - 1] == tokenizer.eot_id for _, end in encoded.spans)
    safe = Example("and", "the end", "", {}, "be short", (("the cat", "the dog"), ("why", "so")))
    ((_, encoded),) = Encoder(template, tokenizer, 10_000).encode([safe])
    messages = [{"role": "system", "content": safe.system}]
    for user, assistant in (*safe.history, (safe.instruction, safe.output)):
        messages += [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
    theirs = tokenizer.hf.apply_chat_template(messages, return_dict=False)
    assert encoded.ids.tolist() == theirs[: len(encoded.ids)] and tokenizer.decode(theirs[len(encoded.ids) :]) == "\n"


def test_a_chat_template_has_places_for_turns_and_a_system_prompt(chat) -> None:
    _, template = chat
    assert template.has_turns and template.has_system and template.next_turn is None


def test_where_earlier_answers_are_rewritten_every_turn_is_an_example(llama_directory: Path) -> None:
    tokenizer = load_tokenizer(str(llama_directory))
    tokenizer.hf.chat_template = (
        "{% for m in messages %}[{{ m['content'] }}"
        "{% if loop.last and m.role == 'assistant' %}</s>{% endif %}{% endfor %}"
    )
    tokenizer, template = with_chat(tokenizer)
    talk = replace(TALK, weights=(1.0, 0.0, 0.5))
    (first, ((_, said),)), (last, turns) = template.renderings(talk)
    assert (first.output, first.history, said) == ("the dog", (), "[the dog") and len(turns) == 1
    assert last.history == TALK.history and turns == template.turns(talk) == [
        ("[be short[the cat[the dog[why[<|\ufdd0user|> so[and <|\ufdd0end|>", "[the end")
    ]
    pieces = list(Encoder(template, tokenizer, 10_000).encode([talk]))
    assert [{*e.weights[e.is_response].tolist()} for _, e in pieces] == [{1.0}, {0.5}]
    assert {prompt_text(example) for example, _ in pieces} == {"the cat\nwhy\nand <|end|>"}
    assert len(list(Encoder(template, tokenizer, 10_000, loss_on="last").encode([TALK]))) == 1


def test_bare_text_is_read_without_markup(plain: HFTokenizer, chat) -> None:
    tokenizer, _ = chat
    text = plain.hf.eos_token + " is text"
    assert special_ids(tokenizer) & set(tokenizer.encode(text))
    assert tokenizer.without_markup().encode(text) == plain.encode(text) and plain.without_markup() is plain


@pytest.mark.parametrize("said", ["the dog", "\n  the dog ", "<|end|> the dog"])
def test_white_space_that_a_token_takes_is_no_token_between_turns(
    llama_directory: Path, tmp_path: Path, said: str
) -> None:
    """Phi 3's `<|end|>` takes the line break behind it, `<|user|>` and `<|assistant|>` too."""
    shutil.copytree(llama_directory, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "tokenizer.json"
    definition = json.loads(file.read_text())
    for token in definition["added_tokens"]:
        token |= {"rstrip": token["content"].startswith("<|"), "lstrip": token["content"] == "<|user|>"}
    definition["model"]["vocab"]["\u786e"] = 300  # no characters of bytes, in a vocabulary of those
    file.write_text(json.dumps(definition))
    tokenizer, template = with_chat(load_tokenizer(str(tmp_path)))
    assert tokenizer.token_bytes(300) == "\u786e".encode() and tokenizer.n_bytes_of[300] == 3
    example = Example("the cat", said, history=(("the cat", said),), system="Write")
    ((_, encoded),) = Encoder(template, tokenizer, 999).encode([example])
    texts = ("system", "Write"), ("user", "the cat"), ("assistant", said), ("user", "the cat"), ("assistant", said)
    messages = [{"role": role, "content": text} for role, text in texts]
    if "<|end|>" not in said:
        theirs = tokenizer.hf.apply_chat_template(messages, return_dict=False)
        assert encoded.ids.tolist() == theirs[: len(encoded.ids)]
    n = tokenizer.encode("\n")[0]
    marks = {tokenizer.encode(f"<|{role}|>")[0] for role in ("user", "assistant", "system", "end")}
    assert not any(a in marks and b == n for a, b in zip(encoded.ids, encoded.ids[1:], strict=False))
    assert encoded.prompt_ids == Encoder(template, tokenizer, 999).prompt_ids(example)
