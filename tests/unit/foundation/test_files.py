"""Files that are replaced in one step, and locks on files."""

from pathlib import Path

import pytest

from foundation.files import is_locked, lock, replace_text, replacing


def test_a_file_is_replaced_in_one_step(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    replace_text(path, "old\n")
    with replacing(path) as draft:
        draft.write_text("new\n")
        assert path.read_text() == "old\n"
        assert draft.parent == tmp_path
    assert path.read_text() == "new\n"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("durable", [True, False])
def test_after_an_error_the_old_file_is_there_and_no_draft(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "a.txt"
    replace_text(path, "old\n")

    def fail() -> None:
        with replacing(path, durable=durable) as draft:
            draft.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_text() == "old\n"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_missing_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        replace_text(tmp_path / "none" / "a.txt", "x")


def test_a_lock_is_held_until_the_file_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    path.touch()
    assert not is_locked(path)
    with path.open("w") as first, path.open("w") as second:
        assert lock(first.fileno())
        assert not lock(second.fileno())
        assert is_locked(path)
    assert not is_locked(path)
