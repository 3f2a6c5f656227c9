"""The judge of the configuration group `judge`."""

import json
import os
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from omegaconf import DictConfig, OmegaConf

from instruct_lit.config.check_commands import judge_relations
from instruct_lit.config.compose import CONF, choices_of
from instruct_lit.config.model_builders import install_satellites
from instruct_lit.config.schema.evaluation import JudgeConfig
from instruct_lit.config.schema.options import check_values, violations
from instruct_lit.config.targets import arguments_for, merged, plain
from instruct_lit.errors import ConfigError
from instruct_lit.evaluation.answer_cache import AnswerCache
from instruct_lit.evaluation.judging.endpoints import OllamaEndpoint, OpenAIEndpoint, is_loopback
from instruct_lit.evaluation.judging.judge import Judge, require_judged
from instruct_lit.evaluation.judging.prompt import Choice, JudgePrompt, Score
from instruct_lit.evaluation.judging.response_judge import ResponseJudge
from instruct_lit.evaluation.remote_model import CompletionEndpoint, RemoteModel

_SAMPLED = ("url", "model", "temperature", "max_tokens", "seed", "constrained", "body")
# The keys that a judge's replies depend on.
_REPLY_KEYS = {
    "openai": _SAMPLED, "ollama": (*_SAMPLED, "n_ctx"), "local": ("model", "gguf_file", "max_tokens", "constrained"),
}  # fmt: skip
# The keys in which the judges of a panel may differ.
OF_A_JUDGE = {
    "name", *(key for keys in _REPLY_KEYS.values() for key in keys), "api_key_env", "n_asks", "n_concurrent",
    "n_retries", "timeout_s", "paid", "confirmed", "usd_per_million_tokens",
}  # fmt: skip


def response_judge_of(config: DictConfig, pairwise: bool = False) -> ResponseJudge | None:
    """The judge or panel of `judge`, checked to be reachable; None without the group.

    Raises: JudgeError, ConfigError.
    """
    if config.judge is None:
        return None
    settings, existing = config.judge, config.judge.name == "scores"
    judges = [] if existing else [judge_of(judge, config.paths.cache) for judge in panel_of(settings)]
    for judge in judges:
        judge.check()
    return ResponseJudge(
        name=settings.name,
        model=", ".join(judge.endpoint.model for judge in judges) or None,
        judges=judges,
        prompt=None if existing else judge_prompt_of(settings, pairwise),
        scale=(settings.scale[0], settings.scale[1]),
        combine=settings.combine,
        max_unparsed=settings.max_unparsed,
        scores=Path(settings.path) if existing else None,
        calibrate=Path(settings.calibrate) if settings.calibrate is not None else None,
    )


def scores_of(cache: str, name: str, given: Mapping[str, Any], rows: Sequence[dict[str, Any]]) -> list[float | None]:
    """The scores of responses without a reference by the judge `name` of `judge`, some of its keys given.

    Raises: ConfigError, JudgeError where too many verdicts cannot be read.
    """
    key, names = "data.filters.judge", [name for name in choices_of("judge") if name != "scores"]
    if name not in names:
        raise ConfigError(f"{key}.judge={name}: allowed are {', '.join(names)}")
    own = OmegaConf.load(CONF / "judge" / f"{name}.yaml")
    judge = merged(f"{key}.settings", OmegaConf.structured(JudgeConfig), own, {"prompt": "open_ended"}, dict(given))
    config = OmegaConf.create({"judge": judge, "paths": {"cache": cache}})
    if problems := check_values(judge, "judge.") or violations(config, judge_relations(judge, True, False)):
        raise ConfigError(f"{key}.settings: {problems[0]}")
    found: Any = response_judge_of(config)
    require_judged(found.score(rows), f"{cache}/judge/replies.jsonl")
    return [row["judge"]["value"] for row in rows]


def panel_of(judge: DictConfig) -> list[Any]:
    """The settings of the judge and of the further ones in its `panel`."""
    judges: list[Any] = [judge]
    for number, member in enumerate(judge.panel or ()):
        given = dict(member) if hasattr(member, "keys") else {}
        if not given or (unknown := sorted(set(given) - OF_A_JUDGE)):
            wrong = f"{', '.join(unknown)} cannot differ" if given else "not a mapping"
            raise ConfigError(
                f"judge.panel[{number}]: {wrong}; give a mapping such as {{model: qwen}} with keys of "
                f"{', '.join(sorted(OF_A_JUDGE))}"
            )
        judges.append(merged(f"judge.panel[{number}]", judge, given))
    return judges


def reply_settings(judge: DictConfig) -> dict[str, Any]:
    """What the replies of a judge depend on: two judges that are equal in it are one."""
    own = {key: plain(judge[key]) for key in _REPLY_KEYS.get(judge.name, ())}
    path = {"model": os.path.realpath(Path(own["model"] or "").expanduser())} if judge.name == "local" else {}
    return {**own, "name": judge.name, "url": str(own.get("url")).rstrip("/"), "body": own.get("body") or {}, **path}


def judge_of_suite(config: DictConfig) -> Any:
    """The settings of `judge` with those that the suite needs, `suite.options.judge`. Raises: ConfigError."""
    return merged("suite.options.judge", config.judge, config.suite.options.get("judge") or {})


def judge_of(judge: DictConfig, cache_dir: str) -> Judge:
    """One judge, its replies cached in the cache folder."""
    endpoint: Any
    if judge.name == "local":
        from instruct_lit.evaluation.judging.local import LocalEndpoint

        install_satellites()
        endpoint = LocalEndpoint(**arguments_for(LocalEndpoint, judge))
    else:
        kind = OllamaEndpoint if judge.name == "ollama" else OpenAIEndpoint
        endpoint = kind(**arguments_for(kind, judge), api_key=_key_in(judge.api_key_env))
    cache = AnswerCache(Path(cache_dir) / "judge" / "replies.jsonl")
    prices = judge_prices(judge.url, judge.model, judge.usd_per_million_tokens)
    is_here = is_loopback(urlsplit(judge.url or "").hostname or "")  # where requests cost nothing
    must_be_confirmed = judge.paid and not judge.confirmed and (prices is not None or not is_here)
    return Judge(endpoint, cache, **arguments_for(Judge, judge), prices=prices, must_be_confirmed=must_be_confirmed)


def _key_in(variable: str | None) -> str | None:
    return os.environ[variable] if variable else None


def remote_model_of(config: DictConfig) -> RemoteModel:
    """The model of `endpoint`, its replies cached in the cache folder, checked to be reachable."""
    settings = config.endpoint
    given = {**arguments_for(CompletionEndpoint, settings), "api_key": _key_in(settings.api_key_env)}
    endpoint = CompletionEndpoint(**given, constrained=False)
    cache = AnswerCache(Path(config.paths.cache) / "answers" / "endpoint.jsonl")
    judge = Judge(endpoint, cache, **arguments_for(Judge, settings), n_asks=1)
    judge.check()
    return RemoteModel(judge, settings.chat, f"endpoint/{settings.model}", settings.model.rpartition("/")[2])


def judge_prices(url: str | None, model: str, given: Sequence[float] | None) -> tuple[float, float] | None:
    """US dollars per million tokens of prompts and of replies: given, or of the table `prices.json`; None: unknown."""
    if given:
        return given[0], given[1]
    table = json.loads(resources.files("instruct_lit.evaluation.judging").joinpath("prices.json").read_text())
    if not str(url).startswith(table["endpoint"] + "/") or model not in table["usd_per_million_tokens"]:
        return None
    print(f"judge: prices of {model} as of {table['date']}; give judge.usd_per_million_tokens if they changed")
    prompt, reply = table["usd_per_million_tokens"][model]
    return prompt, reply


def judge_prompt_of(judge: Any, pairwise: bool = False) -> JudgePrompt:
    """The prompt of `judge.prompt` or `judge.pairwise_prompt`: the name of a file in conf/judge/prompts, or a path."""
    install_satellites()  # the limits of a template
    key = "pairwise_prompt" if pairwise else "prompt"
    own = CONF / "judge" / "prompts" / f"{judge[key]}.jinja"
    path = own if own.is_file() else Path(judge[key]).expanduser()
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        names = ", ".join(sorted(path.stem for path in own.parent.glob("*.jinja")))
        raise ConfigError(
            f"judge.{key}={judge[key]}: no such prompt and no readable file; prompts are {names}"
        ) from error
    fields = ("history", "instruction", "input", "output")
    if pairwise:
        return JudgePrompt(judge[key], text, Choice(judge.explain), (*fields, "answer_a", "answer_b"))
    return JudgePrompt(judge[key], text, Score(judge.scale[0], judge.scale[1], judge.explain), (*fields, "response"))
