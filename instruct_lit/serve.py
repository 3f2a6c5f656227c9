"""python -m instruct_lit.serve: an OpenAI-compatible API over a finished model."""

from __future__ import annotations

import ipaddress
import socket
from typing import TYPE_CHECKING, Any

from instruct_lit.config.compose import run_command
from instruct_lit.config.schema import ServeConfig, check_values, missing_runs
from instruct_lit.errors import ConfigError

if TYPE_CHECKING:
    from omegaconf import DictConfig


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def usable_port(host: str, port: int) -> int:
    """The port, or a free one for 0. Raises ConfigError where it is taken or the address is not this machine's."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            return int(probe.getsockname()[1])
    except OSError as error:
        raise ConfigError(f"host={host}, port={port}: {error.strerror}; port=0 takes a free one") from error


def check_serve(config: Any) -> None:
    """Raise one ConfigError that lists every impossible value of a server's configuration."""
    problems = check_values(config) + missing_runs(config.run)
    if not 0 <= config.port < 65536:
        problems.append(f"port={config.port}: must be between 0 (a free one) and 65535")
    for key in ("max_waiting", "timeout_s", "max_body_bytes"):
        if config[key] <= 0:
            problems.append(f"{key}={config[key]}: must be above 0")
    if not is_loopback(config.host) and not config.api_key:
        problems.append(
            f"host={config.host}: others could reach it; give api_key=… or INSTRUCT_LIT_API_KEY, or stay with 127.0.0.1"
        )
    if problems:
        raise ConfigError("\n  ".join(problems))


def serve(config: DictConfig) -> None:
    """Open the model at `run` and answer calls until Ctrl-C."""
    check_serve(config)

    from instruct_lit.config import builders as build
    from instruct_lit.core.generation.engine import Engine
    from instruct_lit.serving.conversation import open_speakers
    from instruct_lit.serving.http import make_app
    from instruct_lit.serving.scheduler import Scheduler
    from instruct_lit.serving.server import run_server
    from instruct_lit.serving.service import Service
    from instruct_lit.serving.telemetry import Telemetry

    for module in ("fastapi", "uvicorn", "prometheus_client"):
        build.need(module, "serve", "serve")
    usable_port(config.host, config.port)  # told before the model is opened
    build.install_satellites()
    (speaker,) = open_speakers([config.run], build.given_template(config), config.device)
    telemetry = Telemetry()
    engine = Engine(speaker.model, speaker.tokenizer, **build.engine_options(config))
    telemetry.watch(engine)
    scheduler = Scheduler(engine, config.max_waiting, telemetry.on_finished)
    service = Service(speaker, scheduler, build.sampling_of(config), config.timeout_s)
    app = make_app(service, telemetry, config.api_key, config.max_body_bytes)
    run_server(app, config.host, config.port, f"{speaker.name} at {{url}}/v1 (Ctrl-C ends)")


def main() -> None:
    """Entry point of the command."""
    run_command("serve", ServeConfig, serve)


if __name__ == "__main__":
    main()
