"""`stdout:`, on pipes and files of a test's own: what is written and confirmed, and what can go wrong."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
import trio
import trio.testing

from localdelay import BatchPolicy, Message, PartialSendError, PermanentSendError, Throttled, open_delay_queue
from localdelay.brokers import open_broker
from localdelay.brokers.stdout import classified, cut, open_stdout
from tests.kit.programs import ran

PIPE_BYTES = 65_536


def message(payload: bytes, id: str = "id") -> Message:
    return Message(id, payload, 0.0, {"Trace": "unwritten"})


@attrs.define
class Pipe:
    """A pipe to write to; the test is its reader."""

    reader: int
    writer: int

    def read(self) -> bytes:
        """What is there now."""
        os.set_blocking(self.reader, False)
        try:
            return os.read(self.reader, 10_000_000)
        except BlockingIOError:
            return b""

    async def read_until(self, end: bytes = b"", *, size: int = 0) -> bytes:
        """Read until so many bytes have come and they end like this."""
        with trio.fail_after(10):
            read = bytearray()  # to add to bytes each time would copy gigabytes
            while not read.endswith(end) or len(read) < size:
                await trio.lowlevel.wait_readable(self.reader)
                read += self.read()
        return bytes(read)

    def fill(self) -> bytes:
        """Write until it is full; what was written."""
        os.set_blocking(self.writer, False)
        filled = 0
        try:
            while True:
                filled += os.write(self.writer, b"." * 4096)
        except BlockingIOError:
            os.set_blocking(self.writer, True)
        return b"." * filled


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe(*os.pipe())
    fcntl.fcntl(pipe.writer, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    yield pipe
    for descriptor in (pipe.reader, pipe.writer):
        try:
            os.close(descriptor)
        except OSError as error:
            assert error.errno == errno.EBADF  # the test has closed it


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "localdelay-stdout"]


async def test_a_message_is_its_payload_and_a_line_break(pipe: Pipe) -> None:
    """Bytes are written as they are, line breaks among them, without id and headers."""
    async with open_stdout(pipe.writer) as stdout:
        assert stdout.native_delay is False
        await stdout.send(message(b"one"))
        assert pipe.read() == b"one\n"
        await stdout.send(message(b""))
        await stdout.send(message(b"two\nlines\xff\x00\n"))
        assert pipe.read() == b"\ntwo\nlines\xff\x00\n\n"
        await stdout.send_batch([])
        await stdout.send_batch([message(b"a"), message(b"b")])
        assert pipe.read() == b"a\nb\n"
    assert threads() == []
    os.write(pipe.writer, b"still open")


async def test_many_sends_at_once_come_in_order(pipe: Pipe) -> None:
    """Lines of mixed lengths, many of them longer than what a pipe holds, arrive whole and in order."""
    seed = 20261121
    print("seed", seed)
    rng = random.Random(seed)
    sizes = [1, 10, 500, 4095, 4096, 4097, 20_000, 200_000]
    payloads = [b"%d " % number + b"x" * rng.choice(sizes) for number in range(400)]
    async with open_stdout(pipe.writer) as stdout, trio.open_nursery() as nursery:
        for payload in payloads[:200]:
            nursery.start_soon(stdout.send, message(payload))
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(stdout.send_batch, [message(payload) for payload in payloads[200:]])
        read = await pipe.read_until(size=sum(map(len, payloads)) + 400)
    lines = read.split(b"\n")
    assert lines.pop() == b""
    assert lines[200:] == payloads[200:]
    assert sorted(lines[:200]) == sorted(payloads[:200])  # Trio shuffles which task begins


async def test_a_reader_that_stands_still_holds_up_nobody_else(pipe: Pipe) -> None:
    """While the pipe is full sends wait and the loop goes on; when it is read they are confirmed."""
    filled = pipe.fill()
    confirmed: list[int] = []

    async def send(number: int) -> None:
        await stdout.send(message(b"%d" % number))
        confirmed.append(number)

    async with open_stdout(pipe.writer) as stdout, trio.open_nursery() as nursery:
        for number in range(3):
            nursery.start_soon(send, number)
            await trio.lowlevel.checkpoint()
        begun = trio.current_time()
        await trio.sleep(0.2)
        assert trio.current_time() - begun < 5
        assert confirmed == []
        assert await pipe.read_until(b"2\n") == filled + b"0\n1\n2\n"
    assert sorted(confirmed) == [0, 1, 2]


async def test_a_cancelled_send_that_is_not_written_never_is(pipe: Pipe) -> None:
    """What was cancelled while the pipe was full is not there afterwards, and its payload is let go."""
    filled = pipe.fill()
    async with open_stdout(pipe.writer) as stdout:
        for _ in range(100):
            with trio.move_on_after(0.001):
                await stdout.send(message(b"never"))
        with trio.move_on_after(0.1):
            await stdout.send_batch([message(b"never")] * 1000)
        assert stdout.gauges().waiting == 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stdout.send, message(b"last"))
            assert await pipe.read_until(b"last\n") == filled + b"last\n"


async def test_of_a_cancelled_batch_no_more_is_written(pipe: Pipe) -> None:
    """A batch that is larger than the pipe ends where the reader stopped, at the end of a line."""
    async with open_stdout(pipe.writer) as stdout:
        with trio.move_on_after(0.2):
            await stdout.send_batch([message(b"x" * 999)] * 1000)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stdout.send, message(b"last"))
            read = await pipe.read_until(b"last\n")
    *lines, last = read.splitlines()
    assert set(lines) == {b"x" * 999}
    assert len(lines) == PIPE_BYTES // 4096 * 4
    assert last == b"last"


async def test_a_line_that_was_begun_is_ended(pipe: Pipe) -> None:
    """A line longer than the pipe, cancelled half-way: the next one does not stand in the midst of it."""
    async with open_stdout(pipe.writer) as stdout:
        with trio.move_on_after(0.2):
            await stdout.send(message(b"x" * 200_000))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stdout.send, message(b"last"))
            assert await pipe.read_until(b"last\n") == b"x" * 200_000 + b"\nlast\n"


async def test_where_the_reader_is_gone_nothing_can_be_sent(pipe: Pipe) -> None:
    """A PermanentSendError with the BrokenPipeError as its cause, for each message."""
    async with open_stdout(pipe.writer) as stdout:
        os.close(pipe.reader)
        for _ in range(2):
            with pytest.raises(PermanentSendError, match="broken pipe") as raised:
                await stdout.send(message(b"one"))
            assert isinstance(raised.value.__cause__, BrokenPipeError)
        with pytest.raises(PartialSendError) as some:
            await stdout.send_batch([message(b"a", "a"), message(b"b", "b")])
        assert some.value.failed is not None
        assert {id: type(error) for id, error in some.value.failed.items()} == {
            "a": PermanentSendError,
            "b": PermanentSendError,
        }


async def test_the_reader_goes_while_sends_wait_for_it(pipe: Pipe) -> None:
    """Sends that wait for room end at once when nobody will ever read."""
    pipe.fill()
    async with open_stdout(pipe.writer) as stdout:

        async def send() -> None:
            with pytest.raises(PermanentSendError):
                await stdout.send(message(b"one"))

        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                for _ in range(10):
                    nursery.start_soon(send)
                await trio.sleep(0.1)
                os.close(pipe.reader)


async def test_a_full_disk_is_throttling() -> None:
    """No space left on the device may pass: Throttled, alone and in a batch."""
    full = os.open("/dev/full", os.O_WRONLY)
    async with open_stdout(full) as stdout:
        with pytest.raises(Throttled, match="no room") as raised:
            await stdout.send(message(b"one"))
        assert isinstance(raised.value.__cause__, OSError)
        assert raised.value.__cause__.errno == errno.ENOSPC
        with pytest.raises(Throttled):
            await stdout.send_batch([message(b"a", "a"), message(b"b", "b")])
    os.close(full)


async def test_a_line_that_a_limit_cuts_is_ended_before_the_next(tmp_path: Path) -> None:
    """A file at its limit takes half a line: what is whole is confirmed, the rest comes first later on."""
    begin = 50_000_000  # a hole, so that the limit harms no other file of this process
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with (tmp_path / "out").open("wb", buffering=0) as file:
        file.seek(begin)
        async with open_stdout(file.fileno()) as stdout:
            resource.setrlimit(resource.RLIMIT_FSIZE, (begin + 25, hard))
            try:
                with pytest.raises(PartialSendError) as raised:
                    await stdout.send_batch([message(b"%d-3456789" % n, f"m{n}") for n in range(4)])
                with pytest.raises(Throttled):
                    await stdout.send(message(b"early"))
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            assert raised.value.failed is not None
            assert {id: type(error) for id, error in raised.value.failed.items()} == {
                "m2": Throttled,
                "m3": Throttled,
            }
            await stdout.send(message(b"later"))
            await stdout.send(message(b"end"))
    written = (tmp_path / "out").read_bytes()[begin:]
    assert written == b"0-3456789\n1-3456789\n2-3456789\nlater\nend\n"


@pytest.mark.parametrize(
    ("rest", "lines", "written", "expected"),
    [
        (0, [3, 4], 0, (0, 0)),
        (0, [3, 4], 1, (0, 3)),
        (0, [3, 4], 3, (1, 3)),
        (0, [3, 4], 6, (1, 7)),
        (5, [3, 4], 0, (0, 5)),
        (5, [3, 4], 4, (0, 5)),
        (5, [3, 4], 5, (0, 5)),
        (5, [3, 4], 6, (0, 8)),
        (5, [3, 4], 8, (1, 8)),
        (5, [3, 4], 11, (1, 12)),
    ],
)
def test_what_was_cut_off(rest: int, lines: list[int], written: int, expected: tuple[int, int]) -> None:
    """Whole lines are counted, and the one that was begun is found, an older one's rest as well."""
    assert cut(rest, lines, written) == expected


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.ENOSPC, Throttled),
        (errno.EDQUOT, Throttled),
        (errno.EFBIG, Throttled),
        (errno.EPIPE, PermanentSendError),
        (errno.EIO, OSError),
    ],
)
def test_errors_of_a_write(number: int, expected: type[Exception]) -> None:
    """What is full may pass, a reader that is gone is gone for good, the rest is as the system says it."""
    error = OSError(number, os.strerror(number))
    assert isinstance(classified(error), expected)
    assert (classified(error) is error) == (expected is OSError)


async def test_it_is_patient_with_a_descriptor_that_does_not_block(pipe: Pipe) -> None:
    """O_NONBLOCK belongs to all who share the pipe: another process may set it, and sends wait as ever."""
    filled = pipe.fill()
    os.set_blocking(pipe.writer, False)
    async with open_stdout(pipe.writer) as stdout, trio.open_nursery() as nursery:
        nursery.start_soon(stdout.send, message(b"x" * 100_000))
        await trio.sleep(0.1)
        assert await pipe.read_until(b"\n") == filled + b"x" * 100_000 + b"\n"
    assert not os.get_blocking(pipe.writer)


async def test_leaving_does_not_wait_for_the_reader(pipe: Pipe) -> None:
    """Sends that wait end with the block, with an error that says so, and the thread with them."""
    filled = pipe.fill()
    ended: list[Exception] = []

    async def send(payloads: list[bytes]) -> None:
        try:
            await stdout.send_batch([message(payload) for payload in payloads])
        except ConnectionError as error:
            ended.append(error)

    async with trio.open_nursery() as nursery:
        async with open_stdout(pipe.writer) as stdout:
            for _ in range(5):
                nursery.start_soon(send, [b"x" * 1000] * 50)
            await trio.sleep(0.1)
            begun = trio.current_time()
        assert trio.current_time() - begun < 10
    assert len(ended) == 5
    assert all("closed" in str(error) for error in ended)
    assert threads() == []
    assert pipe.read() == filled


async def test_leaving_in_the_midst_of_a_batch(pipe: Pipe) -> None:
    """What is written of it is confirmed, and the rest has failed."""
    async with trio.open_nursery() as nursery:
        async with open_stdout(pipe.writer) as stdout:

            async def send() -> None:
                with pytest.raises(PartialSendError) as raised:
                    await stdout.send_batch([message(b"x" * 999, f"m{n}") for n in range(1000)])
                assert raised.value.failed is not None
                failed.extend(raised.value.failed)

            failed: list[str] = []
            nursery.start_soon(send)
            await trio.testing.wait_all_tasks_blocked(0.05)  # the pipe is full
    assert failed == [f"m{n}" for n in range(len(pipe.read().splitlines()), 1000)]


async def test_an_error_of_the_block_comes_out_as_it_is(pipe: Pipe) -> None:
    """What the caller's own block raises is neither wrapped nor renamed, a cancellation included."""
    own = ConnectionError("user of the block")
    with pytest.raises(ConnectionError) as raised:
        async with open_stdout(pipe.writer):
            raise own
    assert raised.value is own
    with trio.move_on_after(0.01) as scope:
        async with open_stdout(pipe.writer):
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert threads() == []


async def test_what_is_not_open_for_writing_is_refused_at_once(pipe: Pipe) -> None:
    """A closed descriptor, and one that can only be read, are a ConnectionError of one line."""
    with pytest.raises(ConnectionError, match="standard output: it can't be written to"):
        async with open_stdout(pipe.reader):
            pass
    os.close(pipe.writer)
    with pytest.raises(ConnectionError, match="Bad file descriptor"):
        async with open_stdout(pipe.writer):
            pass
    assert threads() == []


@pytest.mark.parametrize("batches", [False, True], ids=["send", "send_batch"])
async def test_a_queue_writes_each_message_once(tmp_path: Path, batches: bool) -> None:
    """2,000 messages through a queue into a file: each line is there once."""
    with (tmp_path / "out").open("wb") as file:
        async with open_stdout(file.fileno()) as stdout:
            sender = (
                {"send_batch": stdout.send_batch, "batch": BatchPolicy(max_messages=100)}
                if batches
                else {"send": stdout.send}
            )
            async with open_delay_queue(**sender, capacity=2000, workers=50) as queue:
                for number in range(2000):
                    queue.put_nowait(b"%d" % number, delay=number % 7 / 100)
    lines = (tmp_path / "out").read_bytes().splitlines()
    assert sorted(map(int, lines)) == list(range(2000))


PROGRAM = """
import sys
import trio
from localdelay import Message, PermanentSendError
from localdelay.brokers import open_broker

async def main():
    sent = 0
    async with open_broker("stdout:") as broker:
        try:
            for number in range(int(sys.argv[1])):
                await broker.send(Message(str(number), b"%d" % number, 0.0))
                sent += 1
        except PermanentSendError as error:
            print("ended by", type(error.__cause__).__name__, file=sys.stderr)
    print("sent", sent, file=sys.stderr)

trio.run(main)
"""


def test_as_a_program_it_writes_to_standard_output() -> None:
    """`open_broker("stdout:")` writes to the real standard output."""
    run = subprocess.run([sys.executable, "-c", PROGRAM, "100"], capture_output=True, timeout=30, check=True)
    assert run.stdout == b"".join(b"%d\n" % number for number in range(100))
    assert run.stderr == b"sent 100\n"


def test_as_a_program_it_ends_with_its_reader() -> None:
    """`| head -1` ends it, without a traceback."""
    command = [sys.executable, "-c", PROGRAM, "1000000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as program:
        assert program.stdout is not None
        assert program.stderr is not None
        program.stdout.readline()
        program.stdout.close()
        assert program.stderr.read().startswith(b"ended by BrokenPipeError\nsent ")
        assert program.wait(30) == 0


def test_as_a_program_with_standard_output_closed() -> None:
    """A ConnectionError in one line, though the descriptor's number is somebody else's by then."""
    run = ran("sh", "-c", 'exec "$0" -c "$1" 1 >&-', sys.executable, PROGRAM, timeout=30)
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1] == (
        "ConnectionError: no connection to standard output: it can't be written to: it is closed"
    )


async def test_by_its_url(capfd: pytest.CaptureFixture[str]) -> None:
    """`stdout:` is file descriptor 1, whatever `sys.stdout` is."""
    async with open_broker("stdout:") as broker:
        await broker.send(message(b"here"))
    assert capfd.readouterr().out == "here\n"
