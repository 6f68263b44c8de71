"""Generates the reference of the command line from the argument parser."""

import argparse
from collections.abc import Iterator

from deploy.cli import _parser

HEAD = """---
search:
  boost: 2
---

# The command line

Generated from the argument parser when this site was built. `breakwater` stands for `.venv/bin/breakwater`, and
`breakwater COMMAND --help` prints the same.
"""


def text() -> str:
    return HEAD + "\n" + "\n".join(_command(_parser(), ""))


def commands(parser: argparse.ArgumentParser) -> Iterator[tuple[str, str, argparse.ArgumentParser]]:
    """Yield the commands of a parser: name, help text, parser."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            texts = {choice.dest: choice.help or "" for choice in action._choices_actions}
            for name, command in action.choices.items():
                yield name, texts.get(name, ""), command


def options(parser: argparse.ArgumentParser) -> Iterator[tuple[str, str]]:
    """Yield the arguments of a parser: how each is written, and its help text."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction | argparse._HelpAction) or action.help == argparse.SUPPRESS:
            continue
        metavar = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
        takes = "" if action.nargs == 0 else f" {metavar}"
        written = ", ".join(f"{flag}{takes}" for flag in action.option_strings) or metavar
        if action.nargs == "+":
            written += " ..."
        yield written, (action.help or "") % {**vars(action), "prog": parser.prog}


def _command(parser: argparse.ArgumentParser, summary: str) -> Iterator[str]:
    depth = len(parser.prog.split())
    yield f"{'#' * (depth if depth > 1 else 2)} `{parser.prog}`\n"
    for text in filter(None, (summary, parser.description)):
        yield f"{text[:1].upper()}{text[1:]}{'' if text.endswith('.') else '.'}\n"
    rows = list(options(parser))
    if rows:
        yield "| option | |\n|---|---|"
        for written, meaning in rows:
            yield "| `{}` | {} |".format(written.replace("|", "\\|"), meaning.replace("|", "\\|"))
        yield ""
    if parser.epilog:
        yield f"{parser.epilog}\n"
    for _, summary_of_command, command in commands(parser):
        yield from _command(command, summary_of_command)
