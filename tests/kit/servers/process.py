"""Brokers of a test's own: real servers on free loopback ports, ended by pid."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import ClassVar, Protocol

import attrs

from localdelay.programs import start_guard

_STOP_TIMEOUT = 20.0
_POLL = 0.02
_PORTS = random.SystemRandom()
"""Workers of one run are not to draw the same ones."""


class NotInstalled(Exception):
    """What the broker needs is not on this machine; it says what to install."""


@attrs.frozen
class Received:
    """One message as a consumer sees it that has nothing of localdelay's."""

    payload: bytes
    headers: Mapping[str, str]
    """Empty where the broker has no headers."""
    at: float
    """Unix time in seconds at which the broker took it in, or it was read."""


class Server(Protocol):
    """A broker of a test's own. Everything blocks: a test calls it in a thread where it may take long."""

    name: ClassVar[str]
    too_large: ClassVar[int]
    """Bytes of a payload that it refuses for good."""
    takes_empty: ClassVar[bool] = True
    """Whether a payload may be empty."""
    keeps_order: ClassVar[bool] = True
    """Whether messages of a batch arrive in its order."""
    throttles_delayed: ClassVar[bool] = False
    """Whether only its own delayed publish is throttled."""

    def start(self) -> None:
        """Start it, and wait until it answers. Raises `NotInstalled`."""

    def stop(self) -> None:
        """End it, and remove all that it left behind; also when it is killed, frozen or was never started."""

    def fresh(self) -> str:
        """The URL, for `open_broker`, of a queue, topic, stream or subject that is new and empty."""

    def read(self, url: str, count: int, timeout: float = 60.0) -> list[Received]:
        """What has arrived there, through a client or connection of its own, in order of arrival.

        Waits until `count` have, or for `timeout` seconds, and then a little longer for what is too many.
        """

    def kill(self) -> None:
        """SIGKILL, or the nearest to it."""

    def restart(self) -> None:
        """Start it again on the same port with what it kept on disk, and wait until it answers."""

    def freeze(self) -> None:
        """SIGSTOP."""

    def thaw(self) -> None:
        """SIGCONT."""

    def throttled(self, url: str) -> AbstractContextManager[None]:
        """Inside this block the broker refuses, or stalls, what is published there: a limit is reached."""


class Process:
    """A child process with a directory and a log of its own, both gone too if the tests are killed."""

    def __init__(self, name: str) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix=f"localdelay-{name}-"))
        self.log = self.directory / "log"
        self._child: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._child is not None
        return self._child.pid

    @property
    def runs(self) -> bool:
        return self._child is not None and self._child.poll() is None

    def start(
        self, command: Sequence[str], answers: Callable[[], bool], *, timeout: float = 300.0, **environ: str
    ) -> None:
        """Start it, and wait until `answers()` is true; a connection that is refused means not yet."""
        with self.log.open("ab") as log:
            self._child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                env={**os.environ, **environ},
                start_new_session=True,  # Ctrl-C is for the tests
            )
        self._release()
        self._guard = start_guard(self._child.pid, self.directory)
        until = time.monotonic() + timeout
        while time.monotonic() < until:
            if self._child.poll() is not None:
                raise RuntimeError(f"{command[0]} has ended at once:\n{self.last_words()}")
            try:
                if answers():
                    return
            except (OSError, EOFError):
                pass
            time.sleep(_POLL)
        raise RuntimeError(f"{command[0]} does not answer within {timeout:g} s:\n{self.last_words()}")

    def last_words(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-20:])

    def kill(self) -> None:
        """SIGKILL, and wait for its end."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            self._release()  # its number may be another's from now on

    def freeze(self) -> None:
        """SIGSTOP, and wait until it has come: the signal takes its time."""
        os.kill(self.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def terminate(self) -> None:
        """End it, gently if it listens."""
        if self._child is not None and self.runs:
            self._child.terminate()
            os.kill(self.pid, signal.SIGCONT)
            try:
                self._child.wait(_STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                self.kill()
        self._release()

    def stop(self) -> None:
        """End it, gently if it listens, and remove its directory."""
        self.terminate()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _release(self) -> None:
        if self._guard is not None:
            self._guard.communicate(b"done\n")
            self._guard = None


class OneProcess(Server):
    """A server that is one process of its own on one port; `restart` starts it again with what is on disk."""

    def __init__(self) -> None:
        self._process = Process(self.name)
        self._numbers = itertools.count(1)
        self.port = 0

    @property
    def directory(self) -> Path:
        return self._process.directory

    @property
    def pid(self) -> int:
        return self._process.pid

    def stop(self) -> None:
        self._process.stop()

    def kill(self) -> None:
        self._process.kill()

    def restart(self) -> None:
        self.start()

    def freeze(self) -> None:
        self._process.freeze()

    def thaw(self) -> None:
        self._process.thaw()


def program(name: str, package: str) -> str:
    """The path of a program. Raises `NotInstalled` with the Debian package that has it."""
    for place in (None, "/usr/sbin:/usr/local/sbin:/sbin"):
        if found := shutil.which(name, path=place):
            return found
    raise NotInstalled(f"{name} is not installed: apt-get install {package}")


def free_port(beside: int = 0) -> int:
    """A loopback port that nobody uses at this moment, nor the next `beside` ones.

    It is below those that the system hands to clients. One of theirs could go to any connection while a
    server that the test has killed is down, and the server would find it taken when it starts again.
    """
    while True:
        port = _PORTS.randrange(10_000, 32_000)
        try:
            for each in range(port, port + beside + 1):
                with socket.socket() as listener:
                    listener.bind(("127.0.0.1", each))
        except OSError:
            continue
        return port


def listening(port: int) -> Callable[[], bool]:
    """Whether somebody accepts connections on this loopback port, as a function for `Process.start`."""

    def answers() -> bool:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True

    return answers
