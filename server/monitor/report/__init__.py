"""Reports: a run folder, or several, as one self-contained page: no network, no scripts, no other files.

``write_report`` is what the server leaves at the end of a run; ``breakwater report`` calls it again, or
``write_comparison`` for several runs. matplotlib is only imported when a page is written.
"""

from collections.abc import Sequence
from pathlib import Path

from foundation.errors import ConfigError
from foundation.files import replace_text
from server.run_folder import REPORT

__all__ = ["REPORT", "write_comparison", "write_report"]


def write_report(folder: Path, out: Path | None = None) -> Path:
    """Write the report of one run, however it ended, and return where it is.

    Args:
        folder: the run folder.
        out: the file; None for ``report.html`` in the folder.

    Raises:
        ConfigError: the folder holds no run, or the file cannot be written; one line.
    """
    from server.monitor.report.reading import read
    from server.monitor.report.single import document

    out = folder / REPORT if out is None else out
    _write(out, document(read(folder)))
    return out


def write_comparison(folders: Sequence[Path], out: Path) -> Path:
    """Write a page with several runs side by side, and return where it is.

    Args:
        folders: run folders; those that differ in nothing but ``federation.seed`` become one line.
        out: the file.

    Raises:
        ConfigError: a folder holds no run, or the file cannot be written; one line.
    """
    from server.monitor.report.reading import read
    from server.monitor.report.several import document

    _write(out, document([read(folder) for folder in folders], out.absolute().parent))
    return out


def _write(path: Path, text: str) -> None:
    try:
        replace_text(path, text)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror or error}") from None
