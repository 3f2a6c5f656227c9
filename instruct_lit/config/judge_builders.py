"""The judge of an evaluation, from its configuration to what it says of the answers."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from instruct_lit.config.compose import CONF
from instruct_lit.errors import ConfigError, InstructLitError

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from instruct_lit.evaluation.judging.judge import Judge, Judgement
    from instruct_lit.evaluation.judging.prompt import JudgePrompt

_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")
_LOGIN = re.compile(r"//(.+)@")
JUDGES = ("openai", "ollama", "local", "scores")


def check_url(key: str, url: str | None) -> list[str]:
    """Problems with an endpoint's address: it is none, or has a password in it, which would be written down."""
    if re.fullmatch(r"https?://[^@\s]+", url or ""):
        return []
    shown = re.sub(_LOGIN, "//***@", url or "null")
    return [f"{key}={shown}: give http://… or https://… without a name and password in it"]


def check_judge(judge: Any, compares: bool) -> list[str]:
    """Problems of the judge group."""
    problems = []
    if judge.name not in JUDGES:
        problems.append(f"judge.name={judge.name}: allowed are {', '.join(JUDGES)}")
    if judge.name in ("openai", "ollama"):
        problems += check_url("judge.url", judge.url)
        if not judge.model:
            problems.append("judge.model=null: name the model that judges")
    elif judge.name == "scores" and not Path(judge.path or "").expanduser().is_file():
        problems.append(f"judge.path={judge.path}: no such file")
    if judge.name == "scores" and compares:
        problems.append("judge=scores: scores that are there cannot compare two models; choose openai, ollama or local")
    name = judge.api_key_env
    if name is not None and not _VARIABLE.fullmatch(name):
        problems.append(
            "judge.api_key_env: give the name of an environment variable, in capitals, and never the key itself"
        )
    elif name is not None and not os.environ.get(name):
        problems.append(f"judge.api_key_env={name}: no such environment variable; export {name}=<your key>")
    low, high = judge.scale if len(judge.scale) == 2 else (0, 0)
    if low >= high:
        problems.append(f"judge.scale={list(judge.scale)}: give two whole numbers, the lowest and the highest score")
    elif judge.name != "scores":
        try:
            judge_prompt_of(judge, compares)
        except InstructLitError as error:
            problems.append(str(error))
    if judge.calibrate is not None and not Path(judge.calibrate).expanduser().is_file():
        problems.append(f"judge.calibrate={judge.calibrate}: no such file")
    for key, least in {"n_asks": 1, "n_concurrent": 1, "max_tokens": 1, "n_retries": 0}.items():
        if judge[key] < least:
            problems.append(f"judge.{key}={judge[key]}: must be at least {least}")
    if judge.timeout_s <= 0:
        problems.append(f"judge.timeout_s={judge.timeout_s}: must be above 0")
    if judge.usd_per_million_tokens is not None and len(judge.usd_per_million_tokens) != 2:
        problems.append("judge.usd_per_million_tokens: give two prices, of tokens in and of tokens out")
    if judge.name == "local" and judge.explain and judge.constrained:
        problems.append("judge.explain=true: a local judge is held to the bare score; add judge.constrained=false")
    return problems


def forget_secrets(out_dir: Path, url: str | None, variable: str | None = None) -> None:
    """Take a key given in a wrong place out of what Hydra has written down before anything could be checked.

    That is in the address of an endpoint, and in place of the variable's name.
    """
    secrets = [variable] if variable and not _VARIABLE.fullmatch(variable) else []
    secrets += re.findall(_LOGIN, url or "")
    for path in (out_dir / ".hydra").glob("*.yaml") if secrets else ():
        text = path.read_text(encoding="utf-8")
        for secret in secrets:
            text = text.replace(secret, "***")
        path.write_text(text, encoding="utf-8")


def judge_of(config: DictConfig) -> Judge:
    """The judge of `judge`, its replies kept in the cache folder."""
    from omegaconf import OmegaConf

    from instruct_lit.evaluation.judging.endpoints import OllamaEndpoint, OpenAIEndpoint
    from instruct_lit.evaluation.judging.judge import Judge
    from instruct_lit.evaluation.judging.local import LocalEndpoint
    from instruct_lit.evaluation.judging.reply_cache import ReplyCache

    judge = config.judge
    settings: dict[str, Any] = {"max_tokens": judge.max_tokens, "constrained": judge.constrained}
    endpoint: Any
    if judge.name == "local":
        endpoint = LocalEndpoint(judge.model, judge.gguf_file, **settings)
    else:
        settings |= {name: judge[name] for name in ("temperature", "seed", "timeout_s", "n_retries")}
        settings |= {"body": OmegaConf.to_container(judge.body) if judge.body else {}}
        key = os.environ[judge.api_key_env] if judge.api_key_env else None
        if judge.name == "ollama":
            endpoint = OllamaEndpoint(judge.url, judge.model, key, n_ctx=judge.n_ctx, **settings)
        else:
            endpoint = OpenAIEndpoint(judge.url, judge.model, key, **settings)
    cache = ReplyCache(Path(config.paths.cache) / "judge" / "replies.sqlite")
    prices = tuple(judge.usd_per_million_tokens) if judge.usd_per_million_tokens else None
    return Judge(endpoint, cache, n_concurrent=judge.n_concurrent, n_asks=judge.n_asks, usd_per_million_tokens=prices)


def judge_prompt_of(judge: Any, pairwise: bool = False) -> JudgePrompt:
    """The prompt of `judge.prompt` or `judge.pairwise_prompt`: a file of conf/judge/prompts, or a path."""
    from instruct_lit.evaluation.judging.prompt import Choice, JudgePrompt, Score

    key = "pairwise_prompt" if pairwise else "prompt"
    own = CONF / "judge" / "prompts" / f"{judge[key]}.jinja"
    path = own if own.is_file() else Path(judge[key]).expanduser()
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        names = ", ".join(sorted(path.stem for path in own.parent.glob("*.jinja")))
        raise ConfigError(f"judge.{key}={judge[key]}: no prompt of that name ({names}) and no readable file") from error
    fields = ("history", "instruction", "input", "output")
    if pairwise:
        return JudgePrompt(judge[key], text, Choice(judge.explain), (*fields, "answer_a", "answer_b"))
    return JudgePrompt(judge[key], text, Score(judge.scale[0], judge.scale[1], judge.explain), (*fields, "response"))


def judged(config: DictConfig, rows: list[dict[str, Any]], judge: Judge | None) -> dict[str, Any]:
    """Let the judge score all rows, which get its verdicts as `judge`; its agreement with `judge.calibrate`."""
    from instruct_lit.evaluation.judging.agreement import agreement, read_scores
    from instruct_lit.evaluation.judging.judge import Judgement, summary
    from instruct_lit.evaluation.judging.prompt import texts_of

    low, high = config.judge.scale
    others = None
    if config.judge.calibrate is not None:  # read before anything is paid
        others = read_scores(Path(config.judge.calibrate), len(rows), "judge.calibrate", low, high)
    if judge is None:
        scores = read_scores(Path(config.judge.path), len(rows), "judge.path", low, high)
        judgements = [Judgement(score, "", 1) for score in scores]
    else:
        prompt = judge_prompt_of(config.judge)
        questions = [prompt.render(texts_of(row)) for row in rows]
        judgements = asked(config, judge, prompt, questions)
    for row, judgement in zip(rows, judgements, strict=True):
        row["judge"] = judgement.as_record()
    found = {"name": config.judge.name, "model": config.judge.model, **summary(judgements, low, high, config.seed)}
    if judge is not None:
        found |= judge.usage()
    if others is not None:
        found["agreement"] = agreement([judgement.value for judgement in judgements], others, low, high)
    return found


def asked(config: DictConfig, judge: Judge, prompt: JudgePrompt, questions: Sequence[str]) -> list[Judgement]:
    """The judge's verdicts, after the estimate and, where they cost money, a confirmation."""
    from tqdm import tqdm

    from instruct_lit.core.data.tokenizer import GPT2Tokenizer

    tokenizer = GPT2Tokenizer()
    estimate = judge.estimate(questions, config.judge.max_tokens, lambda text: len(tokenizer.encode(text)))
    print(f"judge {config.judge.model}: {estimate}", flush=True)
    if config.judge.paid and not config.judge.confirmed and estimate.n_left and not _agreed():
        raise ConfigError(
            "judge.confirmed=false: nothing was asked, since this judge costs money; see the estimate and give "
            "judge.confirmed=true, or judge.paid=false for a server of your own"
        )
    with tqdm(total=estimate.n_questions, desc="judge", unit="question", file=sys.stdout) as bar:
        return judge.ask(prompt, questions, bar.update)


def _agreed() -> bool:
    """Whether somebody is there who says yes."""
    try:
        return sys.stdin.isatty() and input("ask it? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:  # Ctrl-D
        return False
