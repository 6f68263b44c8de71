"""Revisions change when the code that they name changes.

``python -m tests.unit.strategies.test_revisions`` records the present code; it refuses to where a number has stayed.
"""

import ast
import hashlib
import io
import json
import sys
import tokenize
from functools import cache
from pathlib import Path

import pytest

from strategies.methods import METHODS
from strategies.revisions import REVISIONS, STREAMS, revision, revisions
from tests.forms import FORMS

ROOT = Path(__file__).parents[3]
RECORDED = Path(__file__).with_name("revisions.json")
SERVERS_OWN = {f"strategies.{name}" for name in ("strategy", "hold", "roster", "evidence", "progress", "deadline")}
"""Modules that no worker runs."""
BOUNDARIES = ("strategies.aggregators", "strategies.compressors")
"""Packages that are not a method's own code: rules run at the server, compressors have numbers of their own."""


@cache
def code_of(module: str) -> tuple[str, frozenset[str]]:
    """Return the code of a module without docstrings, comments and layout, and the modules of ours that it imports."""
    path = ROOT / (module.replace(".", "/") + ".py")
    path = path if path.is_file() else ROOT / module.replace(".", "/") / "__init__.py"
    source = path.read_text(encoding="utf-8")
    tree, imported = ast.parse(source), set[str]()
    lines = source.splitlines(keepends=True)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("strategies"):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            inner = {name for name in names if (ROOT / (name.replace(".", "/") + ".py")).is_file()}
            imported |= inner or {node.module}
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines[node.lineno - 1 : node.end_lineno] = ["\n"] * ((node.end_lineno or node.lineno) - node.lineno + 1)
    comments = [t for t in tokenize.generate_tokens(io.StringIO(source).readline) if t.type == tokenize.COMMENT]
    for token in comments:
        row, column = token.start
        lines[row - 1] = lines[row - 1][:column]
    return " ".join("".join(lines).split()), frozenset(imported)


def digest_of(module: str, boundaries: tuple[str, ...] = BOUNDARIES) -> str:
    """Return a digest of the code of a module and of what it imports of ours."""
    seen: set[str] = set()
    waiting = {module}
    while waiting:
        name = waiting.pop()
        seen.add(name)
        waiting |= {m for m in code_of(name)[1] if not m.startswith(boundaries) and m not in SERVERS_OWN} - seen
    whole = "\n".join(f"{name} {code_of(name)[0]}" for name in sorted(seen))
    return hashlib.sha256(whole.encode()).hexdigest()[:16]


def modules() -> dict[str, tuple[str, tuple[str, ...]]]:
    """Return the module behind each revision, and the packages that are not part of it, by name."""
    found: dict[str, tuple[str, tuple[str, ...]]] = {kind.kind: (kind.__module__, BOUNDARIES) for kind in METHODS}
    found |= {form.kind: (type(form).__module__, ("strategies.aggregators", "strategies.method")) for form in FORMS}
    return found | {STREAMS: ("strategies.randomness", BOUNDARIES)}


def present() -> dict[str, list[int | str]]:
    """Return revision and digest of what there is now, by name."""
    return {name: [revision(name), digest_of(*where)] for name, where in sorted(modules().items())}


def recorded() -> dict[str, list[int | str]]:
    """Return what was recorded last."""
    return dict(json.loads(RECORDED.read_text(encoding="utf-8")))


@pytest.mark.parametrize("name", sorted(modules()))
def test_code_changes_with_its_revision(name: str) -> None:
    number, digest = present()[name]
    assert name in recorded(), f"{name} is new: run python -m tests.unit.strategies.test_revisions"
    before, was = recorded()[name]
    if digest != was:
        assert number != before, f"the code of {name} has changed: raise it in strategies/revisions.py, {before} -> +1"
    assert [number, digest] == [before, was], "run python -m tests.unit.strategies.test_revisions to record it"


def test_nothing_is_recorded_or_numbered_that_there_is_not() -> None:
    assert recorded().keys() == modules().keys()
    assert REVISIONS.keys() <= modules().keys()


def test_a_run_is_known_by_method_compressors_and_streams() -> None:
    assert revisions("robust-sgd", "rand-k").keys() == {"robust-sgd", "rand-k", "identity", STREAMS}


def test_comments_and_layout_are_not_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digests: list[str] = []
    for text in ('"""One."""\nx = 1  # one\n', "x = 1\n", "x = 2\n"):
        folder = tmp_path / str(len(digests)) / "strategies"
        folder.mkdir(parents=True)
        (folder / "made_up.py").write_text(text, encoding="utf-8")
        monkeypatch.setattr(sys.modules[__name__], "ROOT", folder.parent)
        code_of.cache_clear()
        digests.append(digest_of("strategies.made_up"))
    code_of.cache_clear()
    assert digests[0] == digests[1] != digests[2]


def main() -> int:
    """Record the present code; return the exit status."""
    before = recorded() if RECORDED.exists() else {}
    now = present()
    changed = [name for name in now if name in before and before[name][0] == now[name][0] and before[name] != now[name]]
    if changed:
        print(f"changed under their old revisions, raise them in strategies/revisions.py: {', '.join(changed)}")
        return 1
    RECORDED.write_text(json.dumps(now, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
