"""Files and folders that are written whole, and the repair of a replacement that was killed half-way."""

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from robustly.files import finish_swap, is_half_swapped, remove_stale_parts, whole_file, whole_folder, write_text

DEAD = 99_999_999  # number of no process


def content(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def replace_with(folder: Path, text: str, spent: Path | None = None) -> None:
    with whole_folder(folder, spent) as staging:
        write_text(staging / "a", text)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_text(path, "old")
    with suppress(RuntimeError), whole_file(path) as temporary:
        temporary.write_text("ne")
        raise RuntimeError
    assert content(tmp_path) == {"a": "old"}
    write_text(path, "new")
    assert content(tmp_path) == {"a": "new"}


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    folder, spent = tmp_path / "f", tmp_path / "f.partial"
    replace_with(folder, "old")
    write_text(folder / "b", "goes with the old folder")
    spent.mkdir()
    with suppress(RuntimeError), whole_folder(folder, spent) as staging:
        write_text(staging / "a", "new")
        raise RuntimeError
    assert content(tmp_path) == {"f/a": "old", "f/b": "goes with the old folder"}
    assert spent.is_dir()
    replace_with(folder, "new", spent)
    assert content(tmp_path) == {"f/a": "new"}
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


@pytest.mark.parametrize("has_old", [True, False])
def test_a_replacement_killed_at_any_rename_is_completed(
    has_old: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every state between the renames is a full folder for the next process, and that of before or after."""
    rename, calls = Path.replace, 0

    class Killed(BaseException):
        pass

    for at in range(8):
        place = tmp_path / str(at)
        folder = place / "f"
        if has_old:
            replace_with(folder, "old")
        calls = 0

        def replace(self: Path, target: Path, at: int = at) -> Path:
            nonlocal calls
            calls += 1
            if calls == at + 1:
                raise Killed
            return rename(self, target)

        with monkeypatch.context() as patched:
            patched.setattr(Path, "replace", replace)
            try:
                replace_with(folder, "new")
            except Killed:
                was_killed = True
            else:
                was_killed = False
        finish_swap(folder)
        assert not is_half_swapped(folder)
        if not was_killed:
            assert content(place) == {"f/a": "new"}
            assert at == (4 if has_old else 3)
            return
        assert content(place) in ({"f/a": "new"}, {"f/a": "old"} if has_old else {})
    raise AssertionError("the replacement never ended")


def test_parts_of_dead_processes_are_removed_and_no_others(tmp_path: Path) -> None:
    living = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        for number in (DEAD, living.pid, os.getpid()):
            (tmp_path / f".a.{number}.part").touch()
            (tmp_path / f".b.{number}.part").mkdir()
            (tmp_path / f".b.{number}.part" / "x").touch()
        kept = ["a", ".a.part", "a.1.part", ".a.x.part"]
        for name in kept:
            (tmp_path / name).touch()
        write_text(tmp_path / "a", "written")  # removes those of its own name
        assert not (tmp_path / f".a.{DEAD}.part").exists()
        assert (tmp_path / f".b.{DEAD}.part").exists()
        remove_stale_parts(tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == {
            *kept,
            f".a.{living.pid}.part",
            f".b.{living.pid}.part",
        }
        remove_stale_parts(tmp_path / "nowhere")
    finally:
        living.communicate()
    remove_stale_parts(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(kept)
