"""Files that are whole whenever they are there, and locks on files."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DRAFTS = ".*.new"
"""Pattern of the drafts that a crash leaves."""


@contextmanager
def replacing(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Within: write the draft; at the end it takes the file's place. After an error the old file is as it was.

    Args:
        path: of the file.
        durable: wait until the new file is on the disk, so that even a crash of the machine leaves one of the two,
            whole. It may take seconds where others write much.

    Raises:
        OSError: the file cannot be written.
    """
    draft = path.with_name(f".{path.name}.new")
    try:
        yield draft
        if durable:
            _sync(draft)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)  # it may be what fills the disk
    if durable:
        _sync(path.parent)


def replace_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8 in one step, like ``replacing``.

    Raises:
        OSError: it cannot be written; the old file is as it was.
    """
    with replacing(path) as draft:
        draft.write_text(text, encoding="utf-8")


def lock(file: int) -> bool:
    """Lock an open file for this process, until it is closed; return whether that was possible."""
    return _flock(file, fcntl.LOCK_EX)


def is_locked(path: Path) -> bool:
    """Return whether a process holds the lock of a file.

    Raises:
        OSError: it cannot be opened.
    """
    with open(path, "rb") as file:
        return not _flock(file.fileno(), fcntl.LOCK_SH)


def _flock(file: int, how: int) -> bool:
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
