"""Any causal model of transformers: model, tokenizer, chat templates, files, adapters (extra `hf`)."""


def install() -> None:
    """Register with the core the bundles of transformers' models; a second call changes nothing."""
    from instruct_lit.core.bundle import FAMILIES
    from instruct_lit.hf.bundles import HFBundles

    FAMILIES[:] = [HFBundles()]
