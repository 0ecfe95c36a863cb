"""Reading a descriptor: pipes, files, devices and terminals; nothing is lost by a stop."""

from __future__ import annotations

import os
import pty
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest
import trio
import trio.testing

from localdelay.relay.source import Descriptor, InputError


@contextmanager
def pipe() -> Iterator[tuple[int, int]]:
    """(end to read, end to write); whoever closes one of them leaves the other to this."""
    reader, writer = os.pipe()
    try:
        yield reader, writer
    finally:
        for descriptor in (reader, writer):
            with suppress(OSError):
                os.close(descriptor)


@contextmanager
def opened(path: Path) -> Iterator[int]:
    with path.open("rb") as file:
        yield file.fileno()


async def read_all(source: Descriptor) -> bytes:
    found = b""
    while chunk := await source.read():
        found += chunk
    return found


async def test_a_pipe_is_read_as_it_is_filled() -> None:
    """Each read waits until something is there, and returns what is there; nothing is the end."""
    with pipe() as (reader, writer):
        source = Descriptor(reader)
        assert source.keeps is False
        async with trio.open_nursery() as nursery:
            got: list[bytes] = []

            async def read() -> None:
                got.append(await source.read())

            nursery.start_soon(read)
            await trio.testing.wait_all_tasks_blocked()
            assert got == []
            os.write(writer, b"first")
        assert got == [b"first"]
        os.write(writer, b"second")
        os.close(writer)
        assert await read_all(source) == b"second"
        assert source.stop() == (b"", True)


async def test_a_read_that_is_cancelled_takes_nothing() -> None:
    """What comes into a pipe after that is there for the stop, which closes it."""
    with pipe() as (reader, writer):
        source = Descriptor(reader)
        with trio.move_on_after(0):
            await source.read()
        os.write(writer, b"late")
        assert source.stop() == (b"late", False)
        with pytest.raises(BrokenPipeError):
            os.write(writer, b"more")
        assert os.read(reader, 10) == b"", "the number is not free for another file"
        assert source.stop() == (b"", False)


async def test_a_stop_takes_a_full_pipe_and_its_end() -> None:
    """All that is in it, whatever the size of a read; and it knows when nobody writes any more."""
    with pipe() as (reader, writer):
        os.set_blocking(writer, False)
        written = os.write(writer, b"x" * 1_000_000)
        os.close(writer)
        rest, ended = Descriptor(reader).stop()
        assert (len(rest), ended) == (written, True)


async def test_a_stop_ends_though_somebody_goes_on_writing() -> None:
    """An endless producer gets a broken pipe, and not all of the memory."""
    with pipe() as (reader, writer):

        def produce() -> None:
            with suppress(BrokenPipeError):
                while True:
                    os.write(writer, b"y" * 65_536)

        source = Descriptor(reader)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, produce)
            first = await source.read()
            rest, ended = source.stop()
            assert 0 < len(first + rest) < 10_000_000
            assert ended is False


async def test_two_readers_of_one_pipe() -> None:
    """A reader that finds that another was quicker waits on, without blocking anybody."""
    with pipe() as (reader, writer):
        sources = Descriptor(reader), Descriptor(os.dup(reader))
        got: list[bytes] = []

        async def read(source: Descriptor) -> None:
            got.append(await source.read())
            one_has_come.set()

        one_has_come = trio.Event()
        async with trio.open_nursery() as nursery:
            for source in sources:
                nursery.start_soon(read, source)
            await trio.testing.wait_all_tasks_blocked()
            os.write(writer, b"one")
            await one_has_come.wait()
            os.write(writer, b"two")
        assert sorted(got) == [b"one", b"two"]
        for source in sources:
            source.stop()


async def test_a_pipe_that_was_made_not_to_block() -> None:
    """It is waited for as any other."""
    with pipe() as (reader, writer):
        os.set_blocking(reader, False)
        source = Descriptor(reader)
        os.write(writer, b"x")
        assert await source.read() == b"x"
        with trio.move_on_after(0.01) as scope:
            await source.read()
        assert scope.cancelled_caught


async def test_a_socket() -> None:
    """What a pipe can do, a socket can do."""
    ours, theirs = socket.socketpair()
    with closing(ours), closing(theirs):
        source = Descriptor(ours.fileno())
        theirs.sendall(b"one")
        assert await source.read() == b"one"
        theirs.sendall(b"two")
        theirs.shutdown(socket.SHUT_WR)
        assert source.stop() == (b"two", True)


async def test_a_file(tmp_path: Path) -> None:
    """It is read to its end, from where it stands; and what was not read, it keeps."""
    path = tmp_path / "file"
    path.write_bytes(b"skipped" + b"x" * 1_000_000)
    with opened(path) as descriptor:
        os.lseek(descriptor, 7, os.SEEK_SET)
        source = Descriptor(descriptor)
        assert source.keeps is True
        assert await read_all(source) == b"x" * 1_000_000
        assert source.stop() == (b"", False)
        assert os.lseek(descriptor, 0, os.SEEK_CUR) == 1_000_007


async def test_a_file_whose_read_is_cut_off(tmp_path: Path) -> None:
    """What a thread has read meanwhile is not lost."""
    path = tmp_path / "file"
    path.write_bytes(b"content")
    with opened(path) as descriptor:
        source = Descriptor(descriptor)
        source._read_in_thread()
        with trio.move_on_after(0):
            await source.read()
        assert source.stop() == (b"content", False)


@pytest.mark.parametrize(("device", "begins"), [("/dev/null", b""), ("/dev/zero", b"\0\0\0\0")])
async def test_devices(device: str, begins: bytes) -> None:
    """Trio can't wait for them, and they need no waiting."""
    with opened(Path(device)) as descriptor:
        source = Descriptor(descriptor)
        assert (await source.read())[:4] == begins
        assert source.keeps is False


async def test_a_terminal() -> None:
    """A line is read when it is ended; a stop leaves to the shell what is typed after it."""
    primary, secondary = pty.openpty()
    try:
        source = Descriptor(secondary)
        os.write(primary, b"hello\n")
        assert await source.read() == b"hello\n"
        os.write(primary, b"ls\n")
        assert source.stop() == (b"", False)
        os.write(primary, b"\x04")
        assert os.read(secondary, 100) == b"ls\n"
    finally:
        os.close(primary)
        os.close(secondary)


def test_what_can_not_be_read(tmp_path: Path) -> None:
    """A directory, no descriptor, and what is open for writing: nothing would ever come from that."""
    descriptor = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(InputError, match="it is a directory"):
        Descriptor(descriptor)
    os.close(descriptor)
    with pytest.raises(InputError, match="it is closed"):
        Descriptor(descriptor)
    with (tmp_path / "file").open("wb") as file, pipe() as (_, writer):
        for descriptor in (file.fileno(), writer):
            with pytest.raises(InputError, match="it is not open for reading"):
                Descriptor(descriptor)


async def test_a_read_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error of the system comes out of the read, and does not keep a stop from closing the pipe."""

    def fail(*_: object) -> bytes:
        raise OSError(5, "Input/output error")

    with pipe() as (reader, writer):
        os.write(writer, b"x")
        source = Descriptor(reader)
        monkeypatch.setattr(os, "read", fail)
        with pytest.raises(OSError, match="Input/output error"):
            await source.read()
        assert source.stop() == (b"", False)
        with pytest.raises(BrokenPipeError):
            os.write(writer, b"x")
