"""What could not be sent, into files: appended, private, and never lost in silence."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

import pytest

from localdelay.relay import saving
from localdelay.relay.saving import NotAllWritten, Saved, open_lines, open_temporary, save

FULL = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")


def encode(number: int) -> bytes:
    return b"%d\n" % number


class Disk:
    """An `os.write` that takes so many bytes in all, a few at a time, and has no more room then."""

    def __init__(self, room: int, at_once: int = 1 << 30) -> None:
        self.room = room
        self.at_once = at_once
        self._write = os.write

    def write(self, descriptor: int, data: memoryview) -> int:
        if not self.room:
            raise OSError(28, "No space left on device")
        written = self._write(descriptor, data[: min(self.room, self.at_once)])
        self.room -= written
        return written


def test_lines_are_appended(tmp_path: Path) -> None:
    """A new file is its owner's alone; one that is there keeps its content and its mode."""
    path = tmp_path / "file"
    for lines in ([b"a\n", b"b\n"], [], [b"c\n"]):
        file = open_lines(path)
        file.append(lines)
        file.close()
    assert path.read_bytes() == b"a\nb\nc\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    open_lines(path).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_a_line_that_was_cut_off_before_is_ended(tmp_path: Path) -> None:
    """What is appended begins a line of its own."""
    path = tmp_path / "file"
    path.write_bytes(b"whole\nhal")
    file = open_lines(path)
    file.append([b"next\n"])
    file.append([b"last\n"])
    file.close()
    assert path.read_bytes() == b"whole\nhal\nnext\nlast\n"


def test_a_file_that_is_written_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system may take less than it is given: the rest is given again."""
    monkeypatch.setattr(os, "write", Disk(1 << 30, at_once=3).write)
    file = open_lines(tmp_path / "file")
    file.append([b"hello\n", b"world\n"])
    file.close()
    assert (tmp_path / "file").read_bytes() == b"hello\nworld\n"


@pytest.mark.parametrize(
    ("there", "room", "written"),
    [(b"", 0, 0), (b"", 3, 0), (b"", 6, 1), (b"", 13, 2), (b"hal", 1, 0), (b"hal", 7, 1)],
)
def test_a_disk_that_is_full_in_the_middle(
    there: bytes, room: int, written: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It tells how many lines are written; the next one does not stick to half of one."""
    path = tmp_path / "file"
    path.write_bytes(there)
    disk = Disk(room)
    file = open_lines(path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", disk.write)
        with pytest.raises(NotAllWritten) as error:
            file.append([b"hello\n"] * 3)
    assert (error.value.written, error.value.strerror) == (written, "No space left on device")
    file.append([b"next\n"])
    file.close()
    lines = path.read_bytes().split(b"\n")
    assert lines.count(b"hello") == written
    assert lines[-2:] == [b"next", b""]


def test_the_first_place_takes_all(tmp_path: Path) -> None:
    """Where it can, and no other is made."""
    first, second = tmp_path / "first", tmp_path / "second"
    items = range(2500)
    saved = save(items, encode, [(path, lambda path=path: open_lines(path)) for path in (first, second)])
    assert saved == Saved([(first, 2500)])
    assert first.read_bytes() == b"".join(map(encode, items))
    assert not second.exists()
    assert save([], encode, [(second, lambda: open_lines(second))]) == Saved()
    assert not second.exists(), "not even an empty one"


def test_what_one_place_does_not_take_the_next_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk keeps what it has, and the rest goes elsewhere, without a gap and without a double."""
    first, second = tmp_path / "first", tmp_path / "second"
    disk = Disk(room=2 * 1500 + 1)

    def next_disk():  # type: ignore[no-untyped-def]
        disk.room = 1 << 30
        return open_lines(second)

    monkeypatch.setattr(os, "write", disk.write)
    saved = save([7] * 2500, encode, [(first, lambda: open_lines(first)), (second, next_disk)])
    assert saved == Saved([(first, 1500), (second, 1000)], [(first, "No space left on device")])
    assert first.read_bytes() == b"7\n" * 1500 + b"7"
    assert second.read_bytes() == b"7\n" * 1000


def test_a_disk_that_does_not_confirm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it may have forgotten is written elsewhere, all of it: twice is better than never."""

    def fail(_: int) -> None:
        monkeypatch.undo()
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(saving.os, "fsync", fail)
    paths = [tmp_path / "first", tmp_path / "second"]
    saved = save(range(3), encode, [(path, lambda path=path: open_lines(path)) for path in paths])
    assert saved == Saved([(paths[1], 3)], [(paths[0], "Input/output error")])


@FULL
def test_no_place_has_room(tmp_path: Path) -> None:
    """What is lost is counted, and every place's reason is kept."""
    full, nowhere = Path("/dev/full"), tmp_path / "no" / "such"
    saved = save(range(3), encode, [(path, lambda path=path: open_lines(path)) for path in (full, nowhere)])
    assert saved == Saved(
        [], [(full, "No space left on device"), (nowhere, "No such file or directory")], lost=3
    )


def test_the_directory_for_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new file of its owner's alone; where there is no such directory, that is the reason."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    places = [(None, lambda: open_temporary("unsent-"))]
    saved = save(range(3), encode, places)
    ((path, count),) = saved.places
    assert (path.parent, path.suffix, count) == (tmp_path, ".jsonl", 3)
    assert path.read_bytes() == b"0\n1\n2\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    assert save(range(3), encode, places) == Saved([], [(None, "No such file or directory")], lost=3)


def test_files_that_are_not_written_to(tmp_path: Path) -> None:
    """A pipe that nobody reads does not block, and a link is not followed where it must not be."""
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    with pytest.raises(OSError, match="No such device or address"):
        open_lines(pipe)
    link.symlink_to(tmp_path / "target")
    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        open_lines(link, follow_links=False)
    open_lines(link).close()
    assert (tmp_path / "target").exists()
