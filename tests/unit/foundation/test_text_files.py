"""Text files of users, as editors of all systems leave them."""

import os
import threading
from pathlib import Path

import pytest

from deploy.cli import main
from deploy.sweeps.experiment import load_plan
from experiment.config import load
from foundation.errors import ConfigError
from foundation.text import MOST_BYTES, TextError, decoded, read_text
from link.identity.access import read_listed
from server.run_folder.manifest import RunManifest
from tasks.contract import TaskError
from tasks.libsvm import read_libsvm

TEXT = """# größer
[federation]
clients = 3
[task]
kind = "digits"
[strategy]
kind = "robust-sgd"
rounds = 5
gamma = 0.5
"""
READ = {
    "plain": TEXT.encode(),
    "a byte order mark": b"\xef\xbb\xbf" + TEXT.encode(),
    "Windows' line ends": TEXT.replace("\n", "\r\n").encode(),
    "old Macintosh's line ends": TEXT.replace("\n", "\r").encode(),
    "Ctrl-Z at the end": TEXT.encode() + b"\x1a",
    "all of it": b"\xef\xbb\xbf" + TEXT.replace("\n", "\r\n").encode() + b"\x1a\x1a",
}
REFUSED = {
    "UTF-16": (TEXT.encode("utf-16"), "is text in UTF-16; save it as UTF-8"),
    "big-endian UTF-16": (b"\xfe\xff" + TEXT.encode("utf-16-be"), "is text in UTF-16; save it as UTF-8"),
    "UTF-32": (TEXT.encode("utf-32"), "is text in UTF-32; save it as UTF-8"),
    "UTF-16 without a mark": (TEXT.encode("utf-16-le"), "holds NUL bytes, so that it is no text, or text in UTF-16"),
    "Latin-1": (TEXT.encode("latin-1"), "is not UTF-8: byte 0xf6 in line 1; save it as UTF-8"),
    "Latin-1 further down": (b"a\r\nb\r\n\xe4", "is not UTF-8: byte 0xe4 in line 3; save it as UTF-8"),
}


@pytest.mark.parametrize("how", READ)
def test_a_text_is_read_however_it_was_saved(how: str, tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_bytes(READ[how])
    assert read_text(path) == TEXT
    assert load(path).federation.clients == 3


@pytest.mark.parametrize("how", REFUSED)
def test_another_encoding_is_named(how: str, tmp_path: Path) -> None:
    raw, told = REFUSED[how]
    with pytest.raises(TextError) as error:
        decoded(raw)
    assert str(error.value).startswith(told)
    path = tmp_path / "a.toml"
    path.write_bytes(raw)
    for read in (load, load_plan, read_listed):
        with pytest.raises(ConfigError) as refusal:
            read(path)
        assert str(refusal.value) == f"{path}: {error.value}"


def test_an_experiment_is_read_with_a_mark(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_bytes(READ["all of it"])
    text = 'title = "t"\nbase = "base.toml"\nseeds = [1]\n[axes.rule]\nmean = "aggregator.kind=mean"\n'
    path = tmp_path / "experiment.toml"
    path.write_text(text, encoding="utf-8")
    plan = load_plan(path)
    path.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert load_plan(path) == plan


def test_a_list_of_clients_is_read_with_a_mark(tmp_path: Path) -> None:
    path = tmp_path / "clients.txt"
    for raw in (b"\xef\xbb\xbfalice\r\n# who else\r\nbob\r\n\x1a", b"alice\rbob\r"):
        path.write_bytes(raw)
        assert read_listed(path) == {"alice", "bob"}


def test_libsvm_data_are_read_with_a_mark(tmp_path: Path) -> None:
    path = tmp_path / "data"
    for raw in (b"\xef\xbb\xbf+1 1:1 3:0.5\r\n-1 2:1\r\n\x1a", b"+1 1:1 3:0.5\r-1 2:1\r"):
        path.write_bytes(raw)
        samples = read_libsvm(path)
        assert samples.labels.tolist() == [1, -1]
        assert samples.columns.tolist() == [0, 2, 1]
    path.write_bytes("+1 1:1\n".encode("utf-16"))
    with pytest.raises(TaskError, match="is text in UTF-16; save it as UTF-8"):
        read_libsvm(path)


def test_a_run_card_that_an_editor_has_marked_is_read(tmp_path: Path) -> None:
    manifest = RunManifest(run_id=1, listen="h:1", data=None, config_dir=None, tls=None)
    manifest.write(tmp_path, "")
    (tmp_path / "run.json").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "run.json").read_bytes())
    assert RunManifest.read(tmp_path) == manifest


def test_what_is_no_text_file_is_one_line(tmp_path: Path) -> None:
    for path, told in ((tmp_path, "is a folder; name the file in it"), (tmp_path / "a\0b", "cannot be read: ")):
        with pytest.raises(ConfigError) as error:
            load(path)
        assert str(error.value).startswith(f"{path}: {told}")
    with pytest.raises(TextError, match="is longer than 64 MiB"):
        read_text(Path("/dev/zero"))
    with open(tmp_path / "long", "wb") as file:
        file.truncate(MOST_BYTES + 1)
    with pytest.raises(TextError, match="is longer than 64 MiB"):
        read_text(tmp_path / "long")


def test_a_config_may_come_from_a_pipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(READ["all of it"],))
    writer.start()
    assert main(["check", str(pipe)]) == 0
    writer.join()
    assert capsys.readouterr().out.startswith("clients      3")


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        ("x = 1".encode("utf-16"), "SyntaxError"),
        (b"x = '\xe4'", "SyntaxError"),
        (b"\xef\xbb\xbfx = 1\r\n", 'there is no class "T"'),
        (b"x = 1\r", 'there is no class "T"'),
    ],
)
def test_a_task_file_is_pythons_to_read(
    raw: bytes, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "t.py").write_bytes(raw)
    (tmp_path / "a.toml").write_text(TEXT.replace('"digits"', '"custom"\npath = "t.py:T"'), encoding="utf-8")
    main(["check", str(tmp_path / "a.toml")])
    said = capsys.readouterr()
    assert told in said.out + said.err
    assert "Traceback" not in said.out + said.err
