"""`localdelay relay` and a real broker: NATS."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import trio

from localdelay.demo.server import running_server
from tests.kit.commands import COMMAND, in_python

PIPE = subprocess.PIPE


async def test_through_a_real_broker() -> None:
    """Ids and headers arrive; at a signal, what is due later is handed back to the broker's own delay."""
    import trio_asyncio
    from nats.aio.client import Client

    from tests.kit.nats_client import connected

    stream = {"name": "T", "subjects": ["due", "due.delayed.*"], "storage": "memory"}
    lines = [
        {"payload": "later", "delay": 3600, "id": "b"},
        {"payload": "now", "delay": 0, "id": "a", "headers": {"k": "v"}},
    ]
    client = Client()
    async with running_server(max_buffered=100_000) as server, connected(client, server.url):
        create = json.dumps({**stream, "allow_msg_schedules": True}).encode()
        await trio_asyncio.aio_as_trio(client.request)("$JS.API.STREAM.CREATE.T", create)
        jetstream = client.jetstream()
        arrived = await trio_asyncio.aio_as_trio(jetstream.subscribe)("due")
        url = server.url.replace("//", "//user:hunter2@") + "/due"
        process = await trio.lowlevel.open_process(
            [COMMAND, "relay", "--to", url, "--format", "jsonl", "--hand-back", "--grace", "1"],
            stdin=PIPE,
            stderr=PIPE,
        )
        assert process.stdin is not None
        assert process.stderr is not None
        await process.stdin.send_all("".join(json.dumps(line) + "\n" for line in lines).encode())
        sent = await trio_asyncio.aio_as_trio(arrived.next_msg)(timeout=100)
        process.send_signal(signal.SIGTERM)
        said = b"".join([chunk async for chunk in process.stderr]).decode()
        code = await process.wait()
        scheduled = await trio_asyncio.aio_as_trio(jetstream.get_msg)("T", 2)
    assert (sent.data, sent.headers["k"], sent.headers["Localdelay-Id"]) == (b"now", "v", "a")
    assert (scheduled.data, scheduled.headers["Nats-Schedule-Target"]) == (b"later", "due")
    assert code == 143
    assert "1 sent, 1 handed back." in said
    assert "hunter2" not in said


async def test_what_a_broker_refuses_is_kept(tmp_path: Path) -> None:
    """Where trying again is of no use, a message is told, and kept with its error."""
    async with running_server(max_buffered=100_000) as server:
        process = await trio.run_process(
            [COMMAND, "relay", "--to", f"{server.url}/nowhere", "--delay", "0", "-q"],
            stdin=b"a\n",
            capture_stderr=True,
            check=False,
            cwd=tmp_path,
        )
    assert process.returncode == 1
    said = process.stderr.decode().splitlines()
    assert said[-2].startswith("given up: message ")
    assert said[-2].endswith(" of 1 bytes: PermanentSendError: no stream holds nowhere")
    name = said[-1].removeprefix("Given up, and kept in ").removesuffix(": 1 line.")
    assert name.startswith("localdelay-dead-letters-")
    (found,) = map(json.loads, (tmp_path / name).read_bytes().splitlines())
    assert (found["payload"], found["error"]) == ("a", "PermanentSendError: no stream holds nowhere")


def test_a_broker_that_is_down() -> None:
    """One line without a password, exit code 2, and nothing was read."""
    reader, writer = os.pipe()
    os.write(writer, b"a\n")
    os.close(writer)
    process = subprocess.run(
        [COMMAND, "relay", "--to", "nats://user:hunter2@127.0.0.1:1/orders", "--delay", "1"],
        stdin=reader,
        capture_output=True,
        timeout=200,
        check=False,
    )
    assert process.returncode == 2
    assert process.stderr.count(b"\n") == 1
    assert process.stderr.startswith(b"Error: no connection to NATS at")
    assert b"hunter2" not in process.stderr
    assert os.read(reader, 10) == b"a\n"
    os.close(reader)


def test_a_broker_needs_its_extra() -> None:
    """Without the client it is said in one line; the relay itself needs none."""

    def relay(url: str) -> subprocess.CompletedProcess[str]:
        return in_python("relay", "--delay", "0", "--to", url, given="a\n", without="nats")

    process = relay("nats://host/orders")
    assert process.returncode == 2
    assert process.stderr == "Error: nats:// needs a client: pip install 'localdelay[nats]'\n"
    assert relay("stdout:").stdout == "a\n"
