"""Text that somebody else wrote, made safe to show: no line of a log and no screen can be forged with it."""


def one_line(said: object, most: int = 300) -> str:
    """Return what a peer said as one short printable line.

    Args:
        said: anything; its ``str`` is taken.
        most: characters that are kept.
    """
    return "".join(c if c.isprintable() else "?" for c in str(said)[:most])


def escaped(text: str) -> str:
    r"""Return a text without control characters, line ends or marks of direction; they become ``\n``, ``\x1b``, ..."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
