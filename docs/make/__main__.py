"""``python -m docs.make``: gather the pages in build/docs, then build the site in site/, without network access."""

import os
import subprocess
import sys
from pathlib import Path

from docs.make.pages import PAGES, ROOT, gather


def build(pages: Path, site: Path) -> int:
    """Build the site.

    Args:
        pages: folder to gather the pages in; emptied first.
        site: folder of the site; emptied first.

    Returns:
        The exit status of the generator; broken links are errors.
    """
    gather(pages)
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet"]
    command += ["--config-file", str(ROOT / "mkdocs.yml"), "--site-dir", str(site)]
    # The generator's warning about its future is not repeated at every build: docs/design.md discusses it.
    environment = {**os.environ, "BREAKWATER_PAGES": str(pages), "NO_MKDOCS_2_WARNING": "1"}
    status = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode  # noqa: S603  # our own command
    for page in (site / "reference").glob("*.html"):
        # Docstrings start a block of code with a double colon; Markdown would show both colons.
        page.write_text(page.read_text(encoding="utf-8").replace("::</p>", ":</p>"), encoding="utf-8")
    return status


if __name__ == "__main__":
    sys.exit(build(PAGES, ROOT / "site"))
