"""python -m instruct_lit.export: hand a finished model on, as a Hugging Face directory, GGUF, or a traced program."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from instruct_lit.config.compose import run_command
from instruct_lit.config.schema import ExportConfig, check_values, missing_runs
from instruct_lit.errors import ConfigError

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from instruct_lit.core.bundle import OpenedModel

LIBRARIES = {"hf": "transformers", "gguf": "gguf", "torch_export": "pytorch"}  # as the hub calls what opens them


def check_export(config: Any) -> None:
    """Raise one ConfigError that lists every impossible value of an export's configuration."""
    problems = check_values(config) + missing_runs(config.run)
    if config.push_to_hub is not None and config.push_to_hub.count("/") != 1:
        problems.append(f"push_to_hub={config.push_to_hub}: the repository's full name is needed, owner/name")
    if problems:
        raise ConfigError("\n  ".join(problems))


def export(config: DictConfig) -> None:
    """Write the model at `run` in the format `to` with its card, and push the folder if a repository is named."""
    from hydra.core.hydra_config import HydraConfig

    check_export(config)

    from instruct_lit.config import builders as build
    from instruct_lit.core.generation.responses import read_jsonl
    from instruct_lit.exporters.model_card import write_card

    opened = build.open_run(config)
    name = config.name or opened.directory.resolve().parent.name
    folder = Path(HydraConfig.get().runtime.output_dir) / config.to
    WRITERS[config.to](opened, folder, name, config.precision)
    rows = read_jsonl(opened.directory.parent / "responses.jsonl")
    shape = opened.model.config
    write_card(
        folder / "README.md",
        name,
        opened.template,
        opened.about,
        rows,
        shape.context_length,
        opened.model.n_parameters,
        LIBRARIES[config.to],
    )
    print(f"{folder}: " + ", ".join(sorted(path.name for path in folder.iterdir())))
    if config.push_to_hub is not None:
        push(folder, config.push_to_hub, config.private)


def to_hf(opened: OpenedModel, folder: Path, name: str, precision: str) -> None:
    """The bundle, written anew, so that a given template is in it."""
    from instruct_lit.core.bundle import save_bundle
    from instruct_lit.core.generation.sampling import SamplingSettings

    generation = {**vars(SamplingSettings()), "stop": [], **opened.generation}
    about = {key: value for key, value in opened.about.items() if key not in ("version", "kind", "template")}
    save_bundle(folder, opened.model, opened.tokenizer, opened.template, generation, about)


def to_gguf(opened: OpenedModel, folder: Path, name: str, precision: str) -> None:
    """One file for llama.cpp, and the Modelfile that makes it an Ollama model."""
    from instruct_lit.core.chat_template_export import chat_template
    from instruct_lit.exporters.gguf import write_gguf
    from instruct_lit.exporters.ollama import modelfile

    model, tokenizer = ours(opened, "gguf")
    weights = f"model-{precision}.gguf"
    text = modelfile(weights, opened.template, opened.generation, model.config.context_length)
    folder.mkdir(parents=True, exist_ok=True)
    write_gguf(folder / weights, model, tokenizer, precision, name, chat_template(opened.template))  # type: ignore[arg-type]
    (folder / "Modelfile").write_text(text, encoding="utf-8")


def to_torch_export(opened: OpenedModel, folder: Path, name: str, precision: str) -> None:
    """A traced program, token ids `(B, T)` to logits `(B, T, V)`, that runs without this package."""
    import torch

    model, _ = ours(opened, "torch_export")
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {
        "input_ids": {0: torch.export.Dim("n_rows"), 1: torch.export.Dim("n_tokens", max=model.config.context_length)}
    }
    with torch.no_grad():
        program = torch.export.export(model.eval(), (torch.zeros(2, 3, dtype=torch.long),), dynamic_shapes=sizes)
    torch.export.save(program, folder / "model.pt2")


def ours(opened: OpenedModel, to: str) -> tuple[Any, Any]:
    """Model and tokenizer of a GPT-2; ConfigError for another model of transformers."""
    from instruct_lit.core.data.tokenizer import GPT2Tokenizer
    from instruct_lit.core.model.gpt import GPT

    if not isinstance(opened.model, GPT) or not isinstance(opened.tokenizer, GPT2Tokenizer):
        raise ConfigError(
            f"to={to}: only a GPT-2 is written, {opened.directory} holds another model of transformers; "
            "use to=hf, and llama.cpp's convert_hf_to_gguf.py on it"
        )
    return opened.model, opened.tokenizer


def push(folder: Path, repo: str, private: bool) -> None:
    """Upload the folder to a repository of the Hugging Face hub, made if it is not there."""
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        api.create_repo(repo, private=private, exist_ok=True)
        place = api.upload_folder(repo_id=repo, folder_path=folder)
    except Exception as error:  # the hub's client lets errors of its HTTP library through
        raise ConfigError(
            f"push_to_hub={repo}: the hub refuses or is not reached ({type(error).__name__}: {str(error)[:200]}); "
            f"log in with 'hf auth login'. All is written to {folder}"
        ) from error
    print(f"pushed to {place}")


WRITERS = {"hf": to_hf, "gguf": to_gguf, "torch_export": to_torch_export}


def main() -> None:
    """Entry point of the command."""
    run_command("export", ExportConfig, export)


if __name__ == "__main__":
    main()
