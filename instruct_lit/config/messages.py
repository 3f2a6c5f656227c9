"""From an exception to one message on the standard error, and the exit status of the command.

| status | meaning |
|---|---|
| 1 | an unexpected exception, whose traceback is in a file; or a written model that differs from the trained one |
| 2 | an error that the user can correct |
| 3 | a pruned trial of a sweep |
| 128 + n | ended by signal n (130: Ctrl-C or left from the debugger, 143: SIGTERM) |
"""

import bdb
import difflib
import errno
import os
import re
import signal
import sys
import tempfile
import threading
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from instruct_lit.errors import ConfigError, InstructLitError, TrialPruned, printable
from instruct_lit.optional_imports import pip_install

TRACEBACK = "error.txt"
_PACKAGE = Path(__file__).resolve().parents[1]
_NOISE = ("object_type=", "reference_type=", "Config search path:", "provider=")
# What a RuntimeError of a library begins with, and what the user can do.
_OF_LIBRARIES = {
    "Could not determine home directory": (
        "~: there is no such home folder on this machine; write the whole path in its place, or set HOME"
    ),
    "DataLoader worker (pid": (
        "data.n_workers: a process that loads batches was killed, mostly for want of memory or of /dev/shm; "
        "use data.n_workers=0, or give it more (docker run --shm-size=1g)"
    ),
    'Could not detect "srun"': (
        "launcher=submitit: this machine has no SLURM (no srun in PATH); start the sweep on a login node, or use "
        "launcher=submitit_local"
    ),
}


# Keys by their names in transformers, TRL, peft and other trainers.
ELSEWHERE = {
    "learning_rate": "optimizer.lr", "num_train_epochs": "trainer.max_epochs", "epochs": "trainer.max_epochs",
    "per_device_train_batch_size": "data.batch_size", "gradient_accumulation_steps": "trainer.accumulate_grad_batches",
    "max_seq_length": "data.max_length", "lora_r": "adapter.rank", "lora_alpha": "adapter.alpha",
    "output_dir": "paths.outputs", "logging_steps": "trainer.log_every_n_steps", "bf16": "trainer.precision",
    "eval_steps": "trainer.val_check_interval", "max_grad_norm": "trainer.gradient_clip_val",
    "fp16": "trainer.precision", "gradient_checkpointing": "model.activation_checkpointing",
    "model_name_or_path": "model.path",
}  # fmt: skip
_OPTIONS_OF_HYDRA = (
    "--help", "--hydra-help", "--version", "--cfg", "--resolve", "--package", "--run", "--multirun", "--info",
    "--shell-completion", "--config-path", "--config-name", "--config-dir", "--experimental-rerun",
)  # fmt: skip
_CHOICE = re.compile(r"(?:.*[\n:] +)?Could not find '([\w/]+)/([^'/]+)'\n +Available options in .*:\n([\w\s.-]*)")
_SYNONYMS = {"slurm": "submitit"}  # of choices of groups
_ended: list[int] = []  # statuses of signals: a library in C may swallow the exception of one, and fail with another


@contextmanager
def one_message(command: str) -> Iterator[None]:
    """Print any exception of a command as one message, without a traceback, and exit with its status.

    A warning of this package's own is one line too.
    """
    try:
        with _signals_as_exceptions(command), _warnings_as_lines():
            yield
    except (KeyboardInterrupt, bdb.BdbQuit):
        sys.exit(130)
    except Exception as error:
        if _ended:
            sys.exit(_ended[0])
        _exit(*_explained(error, command))


def _explained(error: Exception, command: str) -> tuple[str, int]:
    """The message of an exception, and the exit status."""
    if isinstance(error, InstructLitError | TrialPruned):
        return str(error), error.status
    if isinstance(error, HydraException | OmegaConfBaseException):
        return str(ConfigError(explain(error, command))), 2
    message = str(error) if isinstance(error, ValueError) and str(error).startswith("Only one of --run") else None
    message = message or (_of_system(error) if isinstance(error, OSError) else _of_library(error) or _of_null(error))
    message = message or _of_group(error)
    return message or _unexpected(error), 2 if message else 1


@contextmanager
def _signals_as_exceptions(command: str) -> Iterator[None]:
    """Let a request to end unwind the program, so that unfinished files are removed; training has its own handlers."""
    in_main_thread = threading.current_thread() is threading.main_thread()  # elsewhere no handler can be set
    given = ("SIGTERM", "SIGHUP") if command == "chat" else ("SIGINT", "SIGTERM", "SIGHUP")  # a chat survives Ctrl-C
    names = [name for name in given if in_main_thread and hasattr(signal, name)]
    stock, handlers = (signal.SIG_DFL, signal.default_int_handler), {}

    def end(number: int, _: Any) -> None:
        _ended.append(128 + number)
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        _exit(f"ended by {signal.Signals(number).name}; files written before are intact", 128 + number)

    try:
        for number in map(signal.Signals.__getitem__, names):
            if signal.getsignal(number) in stock:
                handlers[number] = signal.signal(number, end)
                _ended.clear()
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextmanager
def _warnings_as_lines() -> Iterator[None]:
    """Write a warning that comes from this package without the place in its source."""
    of_python = warnings.formatwarning

    def of_user(message: Any, category: Any, filename: str, lineno: int, line: str | None = None) -> str:
        ours = Path(filename).is_relative_to(_PACKAGE)
        return f"warning: {message}\n" if ours else of_python(message, category, filename, lineno, line)

    warnings.formatwarning = of_user
    try:
        yield
    finally:
        warnings.formatwarning = of_python


def _exit(message: str, status: int) -> None:
    print(f"error: {message}" if status <= 2 else message, file=sys.stderr)
    sys.exit(status)


def _of_group(error: Exception) -> str | None:
    """The message on a group of the command line without a choice: Hydra names neither the group nor its choices."""
    from instruct_lit.config.compose import choices_of

    if not re.search(r"group override must be|^argument of type '\w+' is not iterable", str(error)):
        return None
    given = [re.fullmatch(r"(\w+)=(null|[\d.+-]+|\[.*\]|\{.*\})", argument) for argument in sys.argv[1:]]
    chosen = ((found, choices_of(found[1])) for found in given if found)
    named = (f"{found[0]}: a group needs a choice; allowed are {', '.join(names)}" for found, names in chosen if names)
    return next(named, None if "not iterable" in str(error) else "a group needs a choice, not null; see --help")


def _of_null(error: Exception) -> str | None:
    """The message on a key of a group that is off, of which OmegaConf names neither."""
    from instruct_lit.config.compose import choices_of

    if isinstance(error, AssertionError) and str(error).startswith("Unexpected type for root: NoneType"):
        for given in sys.argv[1:]:
            group, dot, _ = given.partition("=")[0].partition(".")
            if dot and not any(other.startswith(f"{group}=") for other in sys.argv) and (names := choices_of(group)):
                return f"{given}: requires a choice of {group}; add {group}= with one of {', '.join(names)}"
    return None


def _of_system(error: OSError) -> str | None:
    """The message of an error of the file system that the user can correct."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):  # EFBIG: beyond 4 GB on FAT
        return f"{error.filename or 'paths.outputs'}: {error.strerror}; files written before are intact"
    if error.errno == errno.ENOENT and error.filename is None:
        return "the current folder was removed; change to one that exists (cd)"
    # EEXIST: of a file or a broken link in the place of a folder
    unusable = error.errno in (
        errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ELOOP, errno.ENAMETOOLONG
    )  # fmt: skip
    named = error.errno == errno.ENOENT and f"hydra.run.dir={error.filename}" in sys.argv
    if (unusable or named) and error.filename:
        return f"{error.filename}: {error.strerror}; choose another folder (paths.outputs=…, paths.cache=…)"
    return None


def _of_library(error: Exception) -> str | None:
    """The message of an error of a library that the user can correct."""
    if full := re.search(r"([^:]+) \(os error (?:5|27|28|122)\)", str(error)):  # of libraries in Rust: EIO, EFBIG, …
        return f"paths.outputs:{full[1]}; files written before are intact"
    if type(error).__name__ == "UncompletedJobError" and (own := re.findall(r"^error: (.+)", str(error), re.M)):
        return own[-1]  # of submitit, with the error stream of its job
    found = (message for start, message in _OF_LIBRARIES.items() if str(error).startswith(start))
    return next(found, None) if isinstance(error, RuntimeError) else None


def _unexpected(error: Exception) -> str:
    """One line on an exception that nobody expected; its traceback is written to a file."""
    trace = "".join(traceback.format_exception(error))
    what = f"{type(error).__name__}: {printable((str(error).strip() or 'no message').splitlines()[0])[:150]}"
    for folder in filter(None, (_run_folder(), Path(tempfile.gettempdir()))):
        with suppress(OSError):
            return f"{what}; an unexpected error, its traceback is in {_written(folder, trace)}"
    return f"{what}; an unexpected error, and no folder for its traceback:\n{trace}"


def _written(folder: Path, trace: str) -> Path:
    if folder == Path(tempfile.gettempdir()):
        number, name = tempfile.mkstemp(prefix="instruct-lit-", suffix=f"-{TRACEBACK}")
        os.close(number)
        path = Path(name)
    else:
        rank = int(os.environ.get("LOCAL_RANK", 0))
        path = folder / (f"rank{rank}-{TRACEBACK}" if rank else TRACEBACK)
    path.write_text(trace, encoding="utf-8")
    return path


def _run_folder() -> Path | None:
    """The folder of this run; None before there is one, and for commands that have none (chat, serve, …)."""
    if not HydraConfig.initialized():
        return None
    folder = Path(HydraConfig.get().runtime.output_dir)
    return folder if folder.is_dir() and not folder.samefile(".") else None


def explain(error: Exception, command: str) -> str:
    """The message of Hydra or OmegaConf, with the nearest correct spelling and the allowed keys."""
    if isinstance(error, OverrideParseException):
        key, equals, value = error.override.partition("=")
        quoted = value.replace("\\", "\\\\").replace('"', '\\"')
        remedy = f"put it in double quotes inside of single ones: '{key}=\"{quoted}\"'" if equals else "give key=value"
        return f"{error.override}: a value with such characters must be quoted; {remedy}"
    cause = error.__cause__
    texts = [str(error), *([str(cause)] if cause is not None and str(cause) not in str(error) else [])]
    lines = [line.strip() for text in texts for line in text.splitlines() if line.strip()]
    message = "\n  ".join(line for line in lines if not line.startswith(_NOISE))
    if required := re.search(r"field '(\S+)' is not Optional", message):
        return f"{required[1]}=null: a value is needed; leave it out for the default"
    if several := re.match(r"Ambiguous value for argument '([^=]+)=(.*)'", message):
        key, values = several.groups()
        return f"{key}={values}: several values; add -m to run each in turn, or write a list as {key}=[{values}]"
    if single := re.match(r"Error merging override (\S+)=(.*)\n.* is not a ListConfig", message):
        message += f"\n  give a list: {single[1]}=[{single[2]}]"
    if choice := _CHOICE.match(message):
        group, name, choices = choice.groups()
        near = [_SYNONYMS[name]] if name in _SYNONYMS else difflib.get_close_matches(name, choices.split(), n=1)
        message += f"\n  did you mean {group}={near[0]}?" if near else ""
    plugin = re.search(r"hydra/(?:launcher|sweeper)/(\w+)'", message)
    if plugin:
        message += f"\n  is it installed? {pip_install('ray' if plugin.group(1) == 'ray' else 'sweep')}"
    match = re.search(r"[Kk]ey '([^']+)'", str(cause or error)) or re.search(r"[Kk]ey '([^']+)'", str(error))
    full_key = re.search(r"full_key: (\S+)", str(cause or error)) or re.search(r"override '?([\w.@/]+)", str(error))
    if match and full_key:
        nearest = _nearest(full_key.group(1).rpartition(".")[0], match.group(1), command)
        # a new key would be refused
        if re.search("did you mean| belongs to |: _target_", nearest) or re.search(r"not in '\w+Config'", message):
            message = re.sub(r"\n  To append to your config use .*", "", message)
        message += nearest
    return message


def refuse_options(arguments: Sequence[str], command: str) -> None:
    """Raise ConfigError for an option such as `--batch-size` that is not one of Hydra's."""
    for argument in arguments:
        option, _, value = argument.partition("=")
        if option.startswith("--") and option not in _OPTIONS_OF_HYDRA:
            key = option.strip("-").replace("-", "_")
            near = (_known_elsewhere(key, command) or [key])[0]
            raise ConfigError(f"{option}: settings have no dashes; write {near}={value or 'value'}; see --help")


def warn_of_repeated_keys(arguments: Sequence[str]) -> None:
    """Warn of keys with several values, of which Hydra takes the last."""
    given = [argument.lstrip("+") for argument in dict.fromkeys(arguments) if "=" in argument and argument[0] != "-"]
    keys = [argument.partition("=")[0] for argument in given]
    for key in dict.fromkeys(key for key in keys if keys.count(key) > 1):
        print(f"warning: {key} has several values; the last one is used", file=sys.stderr)


def _nearest(parent: str, key: str, command: str) -> str:
    """Lines with the nearest key: beside the wrong one, otherwise anywhere in the tree."""
    from instruct_lit.config.compose import CONF, choices_of

    if key in ("seeds", "n_seeds"):
        return "\n  did you mean sweep=seeds? The seeds are those of seed=1,2,3"
    prefix = f"{parent}." if parent else ""
    full, of_hydra = f"{prefix}{key}", prefix.startswith("hydra.")
    known = known_keys(command, with_hydra=of_hydra)
    beside = list(dict.fromkeys(k.removeprefix(prefix).split(".")[0] for k in known if k.startswith(prefix)))
    for group in (full.partition(".")[0], "sweep", "launcher"):
        for name in choices_of(group):
            is_in_file = key in (CONF / group / f"{name}.yaml").read_text(encoding="utf-8")
            if is_in_file and full in known_keys(command, (f"{group}={name}",), of_hydra):
                return f"\n  {full} belongs to {group}={name}; choose that, or leave {full} out"
    near = [f"{prefix}{name}" for name in difflib.get_close_matches(key, beside, n=1)]
    near = near or [name for name in _known_elsewhere(full, command) if name != parent]
    lines = f"\n  did you mean {near[0]}?" if near else ""
    if beside:
        lines += f"\n  allowed{f' in {parent}' if parent else ''}: {', '.join(beside)}"
    return lines


def _known_elsewhere(key: str, command: str) -> list[str]:
    """The key that has the name `key` in other programs, or its last part in another place, or a similar name."""
    leaf, known = key.rpartition(".")[2], known_keys(command)
    named = [name for name in known if name == ELSEWHERE.get(leaf) or name.rpartition(".")[2] == leaf]
    named.sort(key=lambda name: name != ELSEWHERE.get(leaf))
    return named[:1] or difflib.get_close_matches(key, known, n=1)


def known_keys(command: str, arguments: Sequence[str] | None = None, with_hydra: bool = False) -> list[str]:
    """Keys of a command's configuration with the choices of its arguments: the most used, then groups before keys."""
    from instruct_lit.config.compose import choices_of, composed, nodes_of
    from instruct_lit.config.help import MOST_USED

    given = [text.partition("=") for text in (sys.argv[1:] if arguments is None else arguments)]
    for choices in ([f"{group}={name}" for group, _, name in given if name in choices_of(group)], []):
        with suppress(HydraException, OmegaConfBaseException, ValueError):
            nodes = nodes_of(OmegaConf.to_container(composed(command, choices, with_hydra)))
            most_used, keys = MOST_USED[command].split(), dict.fromkeys(key for key, _ in nodes if key)
            return sorted(keys, key=lambda name: name not in most_used)
    return []
