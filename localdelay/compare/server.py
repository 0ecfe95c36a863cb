"""A redis-server for the comparison alone: on a free loopback port, and ended whatever happens."""

from __future__ import annotations

import shutil
import socket

import trio

from localdelay.programs import Guarded, last_words

_PROGRAM = "redis-server"
_START_TIMEOUT = 15.0
_POLL = 0.01
_TRIES = 3


class ServerError(Exception):
    """The redis-server is not installed, or does not start."""


def find_server() -> str:
    """The path of the program. Raises `ServerError` where there is none."""
    found = shutil.which(_PROGRAM)
    if found is None:
        raise ServerError(
            "there is no redis-server: install it (apt-get install redis-server), give --redis URL, "
            "or compare what needs none (--only memory --only memory-literal)"
        )
    return found


async def start_server(guarded: Guarded) -> str:
    """Start a server that keeps nothing on disk, and return its URL. It ends with the guarded block.

    Raises `ServerError` where it does not start.
    """
    program = find_server()
    log = guarded.directory / "redis.log"
    # The port that was free may be somebody else's by then.
    for _ in range(_TRIES):
        port = _free_port()
        command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
        command += ["--appendonly", "no", "--dir", str(guarded.directory), "--logfile", str(log)]
        if await _answers(await guarded.start(command), port):
            return f"redis://127.0.0.1:{port}"
    raise ServerError(f"redis-server does not start; {last_words(log)}")


async def _answers(process: trio.Process, port: int) -> bool:
    """Whether it takes commands, and not only connections; False when it has ended."""
    with trio.move_on_after(_START_TIMEOUT):
        while process.poll() is None:
            try:
                async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                    await stream.send_all(b"PING\r\n")
                    if (await stream.receive_some(64)).startswith(b"+PONG") and process.poll() is None:
                        return True
            except OSError:
                pass
            await trio.sleep(_POLL)
        return False
    raise ServerError(f"redis-server does not answer within {_START_TIMEOUT:g} s")


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
