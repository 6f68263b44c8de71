"""The Flower commands of README and docs/flower.md, for tests that run them with addresses and rounds of their own."""

import re
import shlex
import tomllib
from typing import Any

from tests.docs.blocks import blocks_of, commands


def typed(page: str, command: str, part: str) -> dict[str, Any]:
    """Return the settings of a command of a page.

    Args:
        page: ``README.md`` or ``docs/flower.md``.
        command: how it begins.
        part: what else is in it.

    Returns:
        What its ``--run-config`` or ``--node-config`` says, by key.
    """
    (line,) = [
        line
        for block in blocks_of(page)
        for line in commands(block.text)
        if line.startswith(command) and re.search(part, line)
    ]
    words = shlex.split(line)
    (option,) = [word for word in words if word in ("--run-config", "--node-config")]
    pairs = re.findall(r"""([\w-]+)=("[^"]*"|\S+)""", words[words.index(option) + 1])
    return tomllib.loads("\n".join(f"{key} = {value}" for key, value in pairs))
