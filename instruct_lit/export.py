"""python -m instruct_lit.export: convert a finished model to a Hugging Face directory, GGUF, or a traced program."""

from omegaconf import DictConfig

from instruct_lit.config.compose import output_dir, run_command


def export(config: DictConfig) -> None:
    """Write the model at `run` in the format `to` with a model card, and upload it if a repository is named."""
    from instruct_lit.config import model_builders as build
    from instruct_lit.config.soup_builders import soup_of
    from instruct_lit.exporters.formats import FORMATS, export_model, to_adapter, to_gguf_adapter
    from instruct_lit.exporters.hub import push
    from instruct_lit.exporters.model_card import CardFacts, write_card
    from instruct_lit.exporters.verification import QUANTISED, verify_export

    out_dir = output_dir()
    opened = soup_of(config, out_dir) if config.soup else build.open_model(config.run, build.given_template(config))
    folder, given = out_dir / config.to, opened.directory.resolve()
    is_part_of_run = given.name == "bundle" or config.soup
    name = config.name or (given.parent if is_part_of_run else given).name
    stored = str(opened.model.base_dtype).removeprefix("torch.")
    precision = config.precision if config.to == "gguf" else config.dtype or stored
    relation = "merge" if config.soup else "quantized" if precision in QUANTISED else "finetune"
    base = None
    if config.merge:
        export_model(opened, config.to, folder, name, precision, config.llama_cpp)
    elif config.to == "gguf":
        relation = "adapter"
        to_gguf_adapter(opened, folder, name, precision, config.llama_cpp)
    else:
        relation, base = "adapter", to_adapter(opened, folder, config.base_model)
    verified = verify_export(opened, folder, config.to, precision, base) if config.verify else {}
    facts = CardFacts(name, config.license, config.base_model, tuple(config.language), relation, verified)
    library = "peft" if (config.to, relation) == ("hf", "adapter") else FORMATS[config.to]
    write_card(folder / "README.md", facts, opened, library)
    print(f"{folder}: " + ", ".join(sorted(path.name for path in folder.iterdir())))
    if config.push_to_hub is not None:
        print(f"uploaded to {push(folder, config.push_to_hub, config.private, bool(verified.get('readers')))}")


if __name__ == "__main__":
    run_command("export", export)
