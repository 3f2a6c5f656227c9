"""The checks of `chat`, `serve` and `arena`, before a model is opened."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from instruct_lit.config.judge_builders import check_judge
from instruct_lit.config.schema import check_values, missing_runs
from instruct_lit.errors import ConfigError


def check_chat(config: Any) -> None:
    """Raise one ConfigError that lists every invalid value of a chat's configuration."""
    _raise(check_values(config) + missing_runs(config.run))


def check_serve(config: Any) -> None:
    """Raise one ConfigError that lists every invalid value of a server's configuration."""
    problems = check_values(config) + missing_runs(config.run) + _check_names(config.allowed_hosts)
    for origin in config.cors_origins:
        if origin == "*" and not config.api_key:
            problems.append("cors_origins=[*]: any web page could use the server; give api_key=…, or name the pages")
        elif origin != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/\s]+", origin):
            problems.append(f"cors_origins=[{origin}]: not an origin; give one such as https://example.org")
    _raise(problems + _check_host(config.host, config.api_key, "api_key=… or INSTRUCT_LIT_API_KEY"))


def check_arena(config: Any) -> None:
    """Raise one ConfigError that lists every invalid value of an arena's configuration."""
    problems = check_values(config) + _check_names(config.allowed_hosts)
    if config.battles is None:
        problems += missing_runs(config.runs or None, "runs")
        if len(config.runs) == 1:
            problems.append(f"runs=[{config.runs[0]}]: one model; give at least two")
    for key in ("battles", "questions"):
        if config[key] is not None and not Path(config[key]).expanduser().is_file():
            problems.append(f"{key}={config[key]}: no such file")
    problems += _check_host(config.host, config.password, "password=…")
    if config.judge is not None:
        problems += check_judge(config.judge, compares=True)
    _raise(problems)


def _check_names(hosts: Sequence[str]) -> list[str]:
    wrong = [host for host in hosts if not re.fullmatch(r"[A-Za-z0-9._-]+|[0-9a-f:]+", host)]
    return [f"allowed_hosts=[{host}]: no host name; give one such as models.example.org" for host in wrong]


def _check_host(host: str, secret: str | None, remedy: str) -> list[str]:
    from instruct_lit.serving.http import is_loopback

    if secret or is_loopback(host):
        return []
    return [f"host={host}: other machines could reach it; give {remedy}, or keep 127.0.0.1"]


def _raise(problems: list[str]) -> None:
    if problems:
        raise ConfigError("\n  ".join(problems))
