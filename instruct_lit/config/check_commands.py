"""The relations between the keys of the commands beside training, checked before a model is opened."""

import os
import re
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from instruct_lit.config.check_data import data_relations, forgetting_relations
from instruct_lit.config.check_training import model_relations, train_relations
from instruct_lit.config.compose import runs_of
from instruct_lit.config.schema.options import FINISHED, Relation, check, check_values, refused, violations
from instruct_lit.errors import similar
from instruct_lit.optional_imports import missing

_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")
_LOGIN = re.compile(r"//(.+)@")


def check_command(command: str, config: Any) -> None:
    """Raise one ConfigError that lists every impossible value or combination of a command's configuration."""
    relations = RELATIONS.get(command, lambda _: ())
    check(config, chain(relations(config), _template(config.get("template"))))


def _template(template: Any) -> Iterator[Relation]:
    """Keys of a template that would not be read."""
    if template is None:
        return
    is_chat = template.name == "chat"
    reason = "the text is that of the tokenizer; use template=file" if is_chat else "requires template=chat"
    for key in ("text", "path", "next_turn") if is_chat else ("variables", "variant"):
        yield template.get(key) is not None, f"template.{key}", reason
    both = not is_chat and template.get("text") is not None and template.get("path") is not None
    yield both, "template.path", f"template={template.name} has a text of its own; use template=file"


def _evaluate(config: Any) -> Iterator[Relation]:
    compare = config.compare
    yield from _endpoint(config.endpoint)
    yield from _vllm(config)
    of_models = None if config.run is None and config.endpoint.url is None else True
    n_given = sum(given is not None for given in (of_models, config.responses, compare))
    yield n_given != 1, "run=…, responses=… or compare=[…,…]", "give exactly one of the three"
    no_data = config.endpoint.url is not None and config.run is None and config.data is None
    yield no_data, "endpoint.url", "whose examples shall it answer? add run=…, or data=…"
    unrendered = config.endpoint.url is not None and not config.endpoint.chat and config.template is None
    yield unrendered, "endpoint.chat=false", "prompts need a template; add template=alpaca, or leave it true"
    if config.data is not None:
        yield from data_relations(config.data)
    yield not set(config.metrics) - {"ended"}, "metrics", "give at least one besides ended"
    yield compare is not None and len(compare) < 2, "compare", "give two or more run folders or files of responses"
    several = compare is not None or len(runs_of(config)) + (config.endpoint.url is not None) > 1
    yield from _repeated("compare", compare or ())
    yield from _repeated("run", runs_of(config))
    yield several and config.reviews is not None, "reviews", "labels are of one model's responses; give one run"
    yield several and config.n_responses == 1, "n_responses=1", "models are compared on two or more examples"
    fields = [field for field in config.by if field not in ("input", "length")]
    yield several and bool(fields), f"by={fields}", "figures by field are of one model's responses; give one run"
    yield several and config.leaks.train is not None, "leaks.train", "leaks are searched for one model; give one run"
    yield from forgetting_relations(config.forgetting)
    unused = config.forgetting.suite is not None and (several or config.run is None)
    yield unused, "forgetting.suite", "it is answered by one model and its base; give one run, or use benchmark"
    yield config.leaks.near and missing("sklearn", "leaks.near=true", "filters")
    if compare is not None:
        yield missing("sklearn", "compare", "judge")
    if config.judge is not None:
        yield from judge_relations(config.judge, several, pairwise=len(compare or ()) == 2)


def _vllm(config: Any) -> Iterator[Relation]:
    if config.engine == "vllm":
        yield config.run is None, "engine=vllm", f"it computes with {FINISHED}; give run=…"
        yield missing("vllm", "engine=vllm", "vllm")


def _benchmark(config: Any) -> Iterator[Relation]:
    settings, suite = config.benchmark, config.suite
    yield from _repeated("run", runs_of(config))
    yield from _vllm(config)
    through_api = config.engine == "vllm" and suite.system not in ("lm_eval", "mt_bench", "arena_hard")
    yield through_api, "engine=vllm", f"suite={suite.name} asks through an API; give engine=own"
    is_arena = suite.system == "arena"
    unrated = is_arena and not suite.options.get("battles")
    yield unrated, "suite.options.battles=…", "give a file of battles, as `python -m instruct_lit.arena` writes it"
    battles = Path(str(suite.options.get("battles") or "."))
    absent = is_arena and not battles.expanduser().exists()
    yield absent, f"suite.options.battles={battles}", f"no such file{similar(battles)}"
    has_endpoint = config.endpoint.url is not None
    yield not is_arena and not config.run and not has_endpoint, "run=…", f"give {FINISHED}, or endpoint=<url>"
    yield from _endpoint(config.endpoint)
    judged = suite.system in ("mt_bench", "arena_hard")
    own_models = has_endpoint and not judged and suite.system != "lm_eval"
    yield own_models, "endpoint.url", f"suite={suite.name} cannot use it; use a suite of lm-evaluation-harness"
    yield has_endpoint and judged and not config.endpoint.chat, "endpoint.chat=false", "its questions are messages"
    unjudged = "it needs a judge; add judge=openai, judge=ollama or judge=local judge.model=<folder>"
    yield judged and config.judge is None, f"suite={suite.name}", unjudged
    instead = "give suite.options.judge_url=<endpoint>" if "judge_url" in suite.options else "leave it out"
    yield config.judge is not None and not judged, "judge=…", f"suite={suite.name} does not use it; {instead}"
    if config.judge is not None:
        yield from _judge_of_suite(config)
    no_tasks = suite.system == "lm_eval" and not suite.tasks
    yield no_tasks, "suite.tasks", "give tasks of lm-evaluation-harness, such as suite.tasks=[arc_easy]"
    own_examples = suite.system not in ("lm_eval", "arena") and settings.n_shot is not None
    yield own_examples, "benchmark.n_shot", f"suite={suite.name} has its own examples; leave it out"
    if suite.options.get("judge_url") is not None:
        yield from _url("suite.options.judge_url", str(suite.options.judge_url))
    reason = (
        "it runs code that the model writes, in a process with limits but no sandbox; give benchmark.allow_code=true, "
        "best inside a container"
    )
    yield suite.runs_code and not settings.allow_code, f"suite={suite.name}", reason


def _serve(config: Any) -> Iterator[Relation]:
    yield from _server(config, config.api_key, "api_key=… or INSTRUCT_LIT_API_KEY")
    for origin in config.cors_origins:
        key, is_url = f"cors_origins=[{origin}]", re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/\s]+", origin)
        any_page = origin == "*" and not config.api_key
        yield any_page, key, "any web page could use the server; give api_key=…, or name the pages"
        yield origin != "*" and not is_url, key, "not an origin; give one such as https://example.org"


def _arena(config: Any) -> Iterator[Relation]:
    if config.battles is None:
        yield not config.runs, "runs=…", f"give {FINISHED}"
        yield len(config.runs or ()) == 1, "runs", "one model; give at least two"
        yield from _repeated("runs", config.runs or ())
    yield from _server(config, config.password, "password=…")
    if config.judge is not None:
        yield from judge_relations(config.judge, several=True, pairwise=True)
        yield bool(config.judge.panel), "judge.panel", "one judge votes in the arena; leave it out"


def _review(config: Any) -> Iterator[Relation]:
    from instruct_lit.evaluation.people import VALUES

    yield from _repeated("run", runs_of(config))
    names = [*VALUES, *config.labels]
    yield len(names) > 9, "labels", "at most five: there are keys for nine labels"
    wrong = not all(name.strip() for name in names) or len(set(names)) < len(names)
    yield wrong, f"labels={list(config.labels)}", "give different labels, none of them empty or one of the four"
    yield from _server(config, config.password, "password=… or INSTRUCT_LIT_PASSWORD")


def _export(config: Any) -> Iterator[Relation]:
    repo = config.push_to_hub
    alone = not config.merge and (config.to == "torch_export" or bool(config.soup) or config.dtype is not None)
    own = "an adapter alone is written by to=hf and to=gguf, in its own precision; leave out the other option"
    yield alone, "merge=false", own
    yield config.dtype is not None and config.to != "hf", "dtype", "for to=hf; to=gguf has precision=…"
    yield (config.run is None) == (not config.soup), "run=… or soup=[…,…]", "give one of the two"
    yield from _repeated("soup", config.soup or ())
    yield repo is not None and repo.count("/") != 1, "push_to_hub", "give the full name of the repository, owner/name"


def _peek(config: Any) -> Iterator[Relation]:
    yield from data_relations(config.data)
    if config.run is None:
        yield from model_relations(config)


def _report(config: Any) -> Iterator[Relation]:
    yield (config.folder is None) == (config.runs is None), "folder=… or runs=[…,…]", "give one of the two"
    runs = [Path(run).expanduser() for run in config.runs or ()]
    yield len(runs) == 1, "runs", "one run; give at least two"
    yield from _repeated("runs", config.runs or ())
    for run in runs:
        unfinished = run.is_dir() and not all((run / name).is_file() for name in ("config.yaml", "metrics.json"))
        yield unfinished, f"runs={run}", "not the folder of a finished run, it has no config.yaml or metrics.json"


RELATIONS = {
    "arena": _arena, "benchmark": _benchmark, "evaluate": _evaluate, "export": _export,
    "peek": _peek, "report": _report, "review": _review, "serve": _serve, "train": train_relations,
}  # fmt: skip


def _repeated(key: str, sources: Iterable[str]) -> Iterator[Relation]:
    """A run or file among several that is given twice, be it by its bundle."""
    paths = [Path(str(source)).expanduser().resolve() for source in sources]
    paths = [path.parent if path.name == "bundle" else path for path in paths]
    again = next((source for n, source in enumerate(sources) if paths[n] in paths[:n]), None)
    yield again is not None, f"{key}=[…,{again}]", "given twice; give each once"


def _server(config: Any, secret: str | None, remedy: str) -> Iterator[Relation]:
    """Further names of a server, and an address that other machines reach without a secret."""
    from instruct_lit.evaluation.judging.endpoints import is_loopback

    for host in config.allowed_hosts:
        is_name = re.fullmatch(r"[A-Za-z0-9._-]+|[0-9a-f:]+", host)
        yield not is_name, f"allowed_hosts=[{host}]", "no host name; give one such as models.example.org"
    reason = f"other machines could reach it; give {remedy}, or keep 127.0.0.1"
    yield not secret and not is_loopback(config.host), "host", reason


def _url(key: str, url: str | None) -> Iterator[Relation]:
    """An endpoint's URL must be http, without a password in it, which would be written to files."""
    is_open = re.fullmatch(r"https?://[^@\s]+", url or "")
    shown = re.sub(_LOGIN, "//***@", url or "null")
    yield not is_open, f"{key}={shown}", "give http://… or https://… without a name and password in it"


def _endpoint(endpoint: Any) -> Iterator[Relation]:
    if endpoint.url is not None:
        yield from _url("endpoint.url", endpoint.url)
        yield not endpoint.model, "endpoint.model", "give the name of the endpoint's model"
        yield from _key("endpoint.api_key_env", endpoint.api_key_env)
        yield missing("openai", "endpoint", "judge")


def _key(key: str, variable: str | None) -> Iterator[Relation]:
    """A key of an API is given by the name of an environment variable that has it."""
    is_name = variable is None or _VARIABLE.fullmatch(variable)
    yield not is_name, f"{key}=***", "give the name of an environment variable in capitals, never the key itself"
    unset = variable is not None and is_name and not os.environ.get(variable)
    yield unset, key, f"no such environment variable; export {variable}=<your key>"


def _judge_of_suite(config: Any) -> Iterator[Relation]:
    """Relations of a judge whose settings are partly those of the suite; a wrong one is named where it was given."""
    from instruct_lit.config.judge_builders import judge_of_suite

    yield (refusal := refused(judge_of_suite, config))
    if refusal:
        return
    merged, own = judge_of_suite(config), config.suite.options.get("judge") or {}
    defaults = OmegaConf.structured(OmegaConf.get_type(config.judge))
    for key in own:
        both = config.judge[key] != defaults[key]
        yield both, f"judge.{key}", f"suite={config.suite.name} sets it; give suite.options.judge.{key}=…"
    named = re.compile(rf"\bjudge\.(?=({'|'.join(own)})\b)") if own else re.compile("(?!)")
    yield from check_values(merged, "suite.options.judge.")
    relations = judge_relations(merged, several=True, pairwise=config.suite.system == "arena_hard")
    for problem in violations(OmegaConf.create({"judge": merged}), relations):
        yield named.sub("suite.options.judge.", problem)


def judge_relations(judge: Any, several: bool, pairwise: bool) -> Iterator[Relation]:
    """Relations of a judge and its panel."""
    from instruct_lit.config.judge_builders import judge_prompt_of, panel_of, reply_settings

    yield (refusal := refused(panel_of, judge))
    panel = [judge] if refusal else panel_of(judge)
    keys = ["judge", *(f"judge.panel[{number}]" for number in range(len(panel) - 1))]
    settings = [reply_settings(member) for member in panel]
    for number, (key, member) in enumerate(zip(keys, panel, strict=True)):
        if (first := settings.index(settings[number])) < number and member.name != "scores":
            reason = "so its vote would count twice; give another model, or leave it out"
            yield f"{key}: the same judge as {keys[first]}, {reason}"
        if member.name in ("openai", "ollama"):
            yield from _url(f"{key}.url", member.url)
            yield not member.model, f"{key}.model", "give the name of the judge's model"
        yield from _key(f"{key}.api_key_env", member.api_key_env)
        prices = member.usd_per_million_tokens
        unpaired = prices is not None and len(prices) != 2
        yield unpaired, f"{key}.usd_per_million_tokens", "give two prices, for prompt and reply tokens"
        reason = "a local judge is constrained to the bare score; add judge.constrained=false"
        yield member.name == "local" and judge.explain and member.constrained, "judge.explain", reason
    has_scores = any(member.name == "scores" for member in panel)
    yield has_scores and not Path(judge.path or "").expanduser().is_file(), "judge.path", "no such file"
    yield has_scores and several, "judge=scores", "cannot compare models; use judge=openai, ollama or local"
    yield has_scores and len(panel) > 1, "judge.panel", "scores from a file are not asked; use judge.calibrate=<file>"
    yield judge.audit is not None and several, "judge.audit", "for the scores of one model; leave it out"
    of_scores = "for scores; two models are compared without any"
    yield judge.calibrate is not None and pairwise, "judge.calibrate", of_scores
    is_scale = len(judge.scale) == 2 and judge.scale[0] < judge.scale[1]
    yield not is_scale, "judge.scale", "give two integers, the lowest and the highest score"
    if is_scale and not has_scores:
        yield refused(judge_prompt_of, judge, pairwise)


def forget_secrets(out_dir: Path, config: Any) -> None:
    """Remove secrets given in a wrong place from the files that Hydra writes before any check.

    The places are the URL of an endpoint or a judge, and `api_key_env`, which holds the name of a variable.
    """
    judge = config.get("judge") or {}
    nodes = [judge, config.get("endpoint") or {}, *(m for m in judge.get("panel") or () if hasattr(m, "get"))]
    urls = [node.get("url") for node in nodes]
    if "suite" in config:
        urls.append(config.suite.options.get("judge_url"))
    variables = [node.get("api_key_env") for node in nodes]
    secrets = [str(name) for name in variables if name and not _VARIABLE.fullmatch(str(name))]
    secrets += [secret for url in urls for secret in re.findall(_LOGIN, str(url or ""))]
    for path in (out_dir / ".hydra").glob("*.yaml") if secrets else ():
        text = path.read_text(encoding="utf-8")
        for secret in secrets:
            text = text.replace(secret, "***")
        path.write_text(text, encoding="utf-8")
