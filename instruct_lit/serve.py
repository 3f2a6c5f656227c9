"""python -m instruct_lit.serve: an OpenAI-compatible HTTP API over a finished model."""

from omegaconf import DictConfig

from instruct_lit.config.compose import run_command
from instruct_lit.optional_imports import need


def serve(config: DictConfig) -> None:
    """Serve the model at `run` until Ctrl-C."""
    from instruct_lit.config import model_builders as build
    from instruct_lit.core.generation.engine import Engine
    from instruct_lit.serving.chat_model import open_chat_models
    from instruct_lit.serving.completions import CompletionService
    from instruct_lit.serving.http import make_app
    from instruct_lit.serving.metrics import Metrics
    from instruct_lit.serving.server import run_server, usable_port

    for module in ("fastapi", "uvicorn", "prometheus_client"):
        need(module, "serve", "serve")
    usable_port(config.host, config.port)  # fails before the model is opened
    build.install_satellites()
    (chat_model,) = open_chat_models([config.run], build.given_template(config), config.device)
    engine = Engine(chat_model.model, chat_model.tokenizer, **build.engine_options(config))
    service = CompletionService(
        chat_model, engine, build.sampling_of(config), config.max_waiting, config.timeout_s, Metrics(engine)
    )  # fmt: skip
    app = make_app(
        service, config.api_key, config.max_body_bytes, allowed_hosts=config.allowed_hosts,
        cors_origins=config.cors_origins,
    )  # fmt: skip
    run_server(
        app, config.host, config.port, lambda url: print(f"{chat_model.name} at {url}/v1 (Ctrl-C stops)", flush=True)
    )


if __name__ == "__main__":
    run_command("serve", serve)
