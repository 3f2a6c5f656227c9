"""`instruct-lit`: the eleven commands under one name, and the completion of their words in a shell.

`instruct-lit train model=gpt2` is `python -m instruct_lit.train model=gpt2`.
"""

import difflib
import runpy
import sys
import textwrap
from collections.abc import Sequence

from instruct_lit import __version__
from instruct_lit.config.schema import COMMANDS
from instruct_lit.config.schema.options import sentence_of
from instruct_lit.errors import ConfigError


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the console script."""
    first, *rest = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if first in COMMANDS:
        sys.argv = [f"instruct-lit {first}", *rest]
        # As `python -m` does it: processes for further devices and trials are started by the module's name.
        runpy.run_module(f"instruct_lit.{first}", run_name="__main__", alter_sys=True)
        return
    from instruct_lit.config.messages import one_message
    from instruct_lit.config.progress import survive_readers

    survive_readers()
    with one_message(first):
        print(_text(first, rest))


def _text(first: str, rest: Sequence[str]) -> str:
    """What is printed for the first word if it is no command."""
    if first in ("--help", "-h"):
        return overview()
    if first == "--version":
        return f"instruct-lit {__version__}"
    if first == "completion":
        from instruct_lit.config.completion import completion

        return completion(rest)
    near = difflib.get_close_matches(first, COMMANDS, n=1)
    hint = f"did you mean {near[0]}?" if near else f"commands are {', '.join(COMMANDS)}"
    raise ConfigError(f"instruct-lit {first}: no such command; {hint}")


def overview() -> str:
    """The commands with a sentence each, at most 80 columns wide."""
    lines = ["usage: instruct-lit <command> [group=choice ...] [key=value ...]", "", "Commands:"]
    for command, schema in COMMANDS.items():
        lines += textwrap.wrap(f"  {command:<11}{sentence_of(schema)}", 80, subsequent_indent=" " * 13)
    lines += [
        "",
        "instruct-lit <command> --help lists the groups and keys of a command,",
        "instruct-lit --version prints the version, and",
        '  eval "$(instruct-lit completion bash)"',
        "lets the tab key complete commands, groups, keys and their values (also zsh;",
        "fish: instruct-lit completion fish | source).",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
