"""Any causal model of transformers: model, tokenizer, chat templates, files, adapters (extra `hf`)."""


def install() -> None:
    """Register with the core the bundles of other model families; a second call changes nothing."""
