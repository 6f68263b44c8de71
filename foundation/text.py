"""Text from outside: files of users are read, and text of peers is made safe to show.

Files: a byte order mark at the beginning, line ends of any system and a Ctrl-Z at the end (as old editors leave it) are
not part of the text; any encoding but UTF-8 is refused, with one line. Peers: their text cannot
forge a line of a log or a screen.
"""

import codecs
from pathlib import Path

MOST_BYTES = 64 << 20
"""The longest text that is read: a device such as /dev/zero never ends."""

_OTHERS = {
    codecs.BOM_UTF32_LE: "UTF-32",  # before UTF-16, whose mark begins it
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
_SAVE = "save it as UTF-8"


class TextError(ValueError):
    """A file is not a text that can be read; the message is one line, to follow the file's name."""


def read_text(path: Path) -> str:
    """Return the text of a file, with line ends as ``\\n``; also of a pipe, which is read to its end.

    Raises:
        FileNotFoundError: there is no such file.
        TextError: it cannot be read, or is no text in UTF-8.
    """
    try:
        with open(path, "rb") as file:
            raw = file.read(MOST_BYTES + 1)
    except FileNotFoundError:
        raise
    except IsADirectoryError:
        raise TextError("is a folder; name the file in it") from None
    except (OSError, ValueError) as error:  # the second for a name with a NUL in it
        raise TextError(f"cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if len(raw) > MOST_BYTES:
        raise TextError(f"is longer than {MOST_BYTES >> 20} MiB: is it the right file?")
    return decoded(raw)


def decoded(raw: bytes) -> str:
    """Return the text of these bytes, see ``read_text``.

    Raises:
        TextError: they are no text in UTF-8.
    """
    plain = without_marks(raw)
    try:
        text = plain.decode("utf-8")
    except UnicodeDecodeError as error:
        line = plain.count(b"\n", 0, error.start) + 1
        raise TextError(f"is not UTF-8: byte 0x{plain[error.start]:02x} in line {line}; {_SAVE}") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def without_marks(raw: bytes) -> bytes:
    """Return these bytes without a byte order mark and without what ends a text in old systems.

    Raises:
        TextError: they are text in UTF-16 or UTF-32.
    """
    for epoch, name in _OTHERS.items():
        if raw.startswith(epoch):
            raise TextError(f"is text in {name}; {_SAVE}")
    if b"\0" in raw[:4096]:
        raise TextError(f"holds NUL bytes, so that it is no text, or text in UTF-16; {_SAVE}")
    plain = raw.removeprefix(codecs.BOM_UTF8)
    return plain.rstrip(b"\x1a") if plain.endswith(b"\x1a") else plain


def one_line(text: object, most: int = 300) -> str:
    """Return text from a peer as one short printable line.

    Args:
        text: anything; its ``str`` is taken.
        most: maximum number of characters.
    """
    return "".join(c if c.isprintable() else "?" for c in str(text)[:most])


def first_line(error: object) -> str:
    """Return the first line of an error's message; "" if it is empty."""
    return next(iter(str(error).strip().splitlines()), "")


def kind_and_line(error: BaseException) -> str:
    """Return the type of an error and its first line."""
    line = first_line(error)
    return f"{type(error).__name__}: {line}" if line else type(error).__name__


def escaped(text: str) -> str:
    r"""Return a text without control characters, line ends or marks of direction; they become ``\n``, ``\x1b``, ..."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
