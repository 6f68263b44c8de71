"""Data files: where they are looked up, and how they are read, with errors that a user can act on.

The name of a data file may come over the network in a run's config, so it may not lead out of the data folder.
"""

import bz2
import gzip
import os
import zlib
from collections.abc import Callable
from pathlib import Path, PurePath

from tasks.contract import Setting, TaskError

FIX = "name the folder that holds it with --data FOLDER or the environment variable BREAKWATER_DATA"


def locate(setting: Setting, name: str) -> Path:
    """Return the path of ``name`` under the data folder; the file need not exist.

    Raises:
        TaskError: no data folder is named, or ``name`` leads out of it.
    """
    inside = os.path.normpath(name)
    if PurePath(name).is_absolute() or PurePath(inside).parts[:1] == ("..",):
        raise TaskError(f'data = "{name}": must be a path inside the data folder, without a leading / or ".."')
    if setting.data_dir is None:
        raise TaskError(f'data file "{name}": no data folder is known; {FIX}')
    return setting.data_dir / inside


def read(path: Path) -> bytes:
    """Return a file's content, unpacked where its name ends in ``.gz`` or ``.bz2``.

    Raises:
        TaskError: it is missing or unreadable, or does not match its ending.
    """
    if not path.is_file():
        raise TaskError(f'data file "{path.name}" is not in the folder {path.parent}; {FIX}')
    unpack: Callable[[bytes], bytes] = {".gz": gzip.decompress, ".bz2": bz2.decompress}.get(path.suffix, bytes)
    try:
        return unpack(path.read_bytes())
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise TaskError(f"data file {path}: cannot be read ({error}); copy it again") from None
