"""CITATION.cff obeys its schema, names this version, and cites the papers of docs/glossary.md."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import yaml

from tests.docs.blocks import ROOT, read

FILE = ROOT / "CITATION.cff"


def cited() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return found


def test_it_obeys_the_schema() -> None:
    checker = Path(sys.executable).with_name("check-jsonschema")
    command = [str(checker), "--builtin-schema", "vendor.citation-file-format", str(FILE)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_it_names_the_version_and_the_licence_of_the_package() -> None:
    project = tomllib.loads(read("pyproject.toml"))["project"]
    assert (cited()["version"], cited()["license"]) == (project["version"], project["license"])


def test_every_paper_of_glossary_and_methods_with_an_arxiv_number_is_cited() -> None:
    numbers = set(re.findall(r"arXiv (\d{4}\.\d{5})", read("docs/glossary.md")))
    for path in (ROOT / "strategies").glob("*.py"):
        numbers |= set(re.findall(r"\(arXiv (\d{4}\.\d{5})\)", path.read_text(encoding="utf-8")))
    references = cited()["references"]
    known = {i["value"].removeprefix("arXiv:") for paper in references for i in paper.get("identifiers", [])}
    assert len(numbers) >= 4
    assert numbers <= known
    for paper in references:
        assert {"title", "authors", "year", "notes"} <= set(paper), paper["title"]
