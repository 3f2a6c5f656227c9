"""Nothing in a stranger's model directory is executed: each case would leave a file behind if it were."""

import json
import pickle
import runpy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from instruct_lit.config.api import open_model
from instruct_lit.config.compose import composed
from instruct_lit.config.model_builders import language_of, model_of
from instruct_lit.core.data.example import Example
from instruct_lit.errors import CheckpointError, ConfigError, InstructLitError, TemplateError

pytest.importorskip("transformers")


class Evil:
    """An object whose unpickling leaves a file behind."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.mark,))


def change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def python_of_the_model(folder: Path, mark: Path) -> None:
    (folder / "modeling_evil.py").write_text(f"import pathlib\npathlib.Path({str(mark)!r}).touch()\nclass Evil: pass\n")
    names = ("AutoConfig", "AutoModelForCausalLM", "AutoTokenizer")
    change(folder / "config.json", auto_map={name: "modeling_evil.Evil" for name in names})


def python_of_an_unknown_model(folder: Path, mark: Path) -> None:
    python_of_the_model(folder, mark)
    change(folder / "config.json", model_type="evil", architectures=["Evil"])


def python_of_the_tokenizer(folder: Path, mark: Path) -> None:
    python_of_the_model(folder, mark)
    change(
        folder / "tokenizer_config.json",
        tokenizer_class="Evil", auto_map={"AutoTokenizer": ["modeling_evil.Evil", "modeling_evil.Evil"]},
    )  # fmt: skip


def python_of_another_repository(folder: Path, mark: Path) -> None:
    python_of_the_model(folder, mark)
    change(folder / "config.json", model_type="evil", auto_map={"AutoConfig": f"{folder}--modeling_evil.Evil"})


def python_of_generation(folder: Path, mark: Path) -> None:
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(f"import pathlib\npathlib.Path({str(mark)!r}).touch()\n")
    change(folder / "generation_config.json", custom_generate=str(folder))


def kernel_of_attention(folder: Path, mark: Path) -> None:
    change(folder / "config.json", attn_implementation="evil/kernel", use_kernels=True)


def pickled_weights(folder: Path, mark: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    torch.save({**tensors, "evil": Evil(mark)}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def pickled_adapter(folder: Path, mark: Path) -> None:
    adapter = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": str(folder)}
    # peft imports the module `megatron_core` of a configuration with `megatron_config`.
    config = {**adapter, "target_modules": ["q_proj"], "megatron_config": {"a": 1}, "megatron_core": "modeling_evil"}
    python_of_the_model(folder, mark)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    torch.save({"evil": Evil(mark)}, folder / "adapter_model.bin")


def pickled_tokenizer(folder: Path, mark: Path) -> None:
    for name in ("tokenizer.json", "tokenizer.model", "vocab.bin"):
        (folder / name).write_bytes(pickle.dumps(Evil(mark)))


CASES = [
    python_of_the_model, python_of_an_unknown_model, python_of_the_tokenizer, python_of_another_repository,
    python_of_generation, kernel_of_attention, pickled_weights, pickled_adapter, pickled_tokenizer,
]  # fmt: skip


def test_the_cases_would_leave_the_mark(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    for n, execute in enumerate(
        (
            lambda mark: pickle.loads(pickle.dumps(Evil(mark))),
            lambda mark: (python_of_the_model(tmp_path, mark), runpy.run_path(str(tmp_path / "modeling_evil.py"))),
        )
    ):
        execute(tmp_path / f"mark{n}")
        assert (tmp_path / f"mark{n}").exists()


@pytest.fixture
def stranger(llama_directory: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(llama_directory, tmp_path / "stranger"))


@pytest.mark.parametrize("spoil", CASES)
def test_opening_a_finished_model_executes_nothing(
    stranger: Path, tmp_path: Path, spoil: Callable[[Path, Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What chat, serve, arena, export, evaluate and benchmark do with `run=`; it opens, or is refused by name."""
    mark = tmp_path / "mark"
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(stranger))  # as if it were the current folder
    spoil(stranger, mark)
    try:
        opened = open_model(stranger)
        opened.template.prompt(Example("a", "b"))
    except (CheckpointError, ConfigError):
        pass
    assert not mark.exists()


@pytest.mark.parametrize("spoil", CASES)
def test_training_on_a_strangers_model_executes_nothing(
    stranger: Path, tmp_path: Path, spoil: Callable[[Path, Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`train model=hf model.path=<folder>` without trust_remote_code."""
    mark = tmp_path / "mark"
    monkeypatch.chdir(tmp_path)
    spoil(stranger, mark)
    config = composed("train", ["model=hf", f"model.path={stranger}", "template=chat", f"paths.cache={tmp_path}"])
    try:
        language_of(config)
        model_of(config)
    except InstructLitError:
        pass
    assert not mark.exists()


@pytest.mark.parametrize(
    "text",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__class__.__init__.__globals__ }}",
        "{% set x = cycler.__init__.__globals__.os.system('touch mark') %}",
        "{{ raise_exception.__globals__ }}",
        "{{ lipsum.__globals__['os'].popen('touch mark').read() }}",
        "{% include 'config.json' %}",
        "{% import 'config.json' as c %}",
    ],
)
def test_a_chat_template_reaches_no_python(
    stranger: Path, tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (stranger / "chat_template.jinja").write_text(text)
    with pytest.raises((ConfigError, CheckpointError, TemplateError)):
        open_model(stranger).template.prompt(Example("a", "b"))
    assert not (tmp_path / "mark").exists()


def test_the_pickled_weights_of_a_gpt2_are_data(tmp_path: Path) -> None:
    mark, config = tmp_path / "mark", {"model_type": "gpt2", "n_positions": 8, "n_embd": 4, "n_layer": 1, "n_head": 1}
    (tmp_path / "config.json").write_text(json.dumps({**config, "vocab_size": 50257}))
    torch.save({"wte.weight": Evil(mark)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="pytorch_model.bin: damaged or not a weights file"):
        open_model(tmp_path, "alpaca")
    assert not mark.exists()
