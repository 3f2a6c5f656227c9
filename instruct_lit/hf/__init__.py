"""Any causal model of transformers: model, tokenizer, chat templates, files, adapters (extra `hf`)."""


def install() -> None:
    """Register with the core transformers' models and files, and limits on templates; a second call changes nothing."""
    from instruct_lit.core.bundle import FAMILIES, TOKENIZER_EXPORTS
    from instruct_lit.core.jinja_environments import LIMITED
    from instruct_lit.hf.bundles import HFBundles
    from instruct_lit.hf.chat_template_export import write_gpt2_tokenizer
    from instruct_lit.hf.template_limits import limited_environment

    FAMILIES[:], TOKENIZER_EXPORTS[:], LIMITED[:] = [HFBundles()], [write_gpt2_tokenizer], [limited_environment]
