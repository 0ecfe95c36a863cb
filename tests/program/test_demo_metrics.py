"""`--metrics`: what Prometheus would read while a demo or a relay runs; and a demo that goes on."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import time
import urllib.request

from tests.kit.commands import run, running


def test_metrics_are_served_while_it_runs() -> None:
    """On the port that it says; the queue and the fallback of the second run are in them."""
    options = ("--rate", "500", "--seconds", "300ms", "--delay", "1s", "--metrics", "0", "--json")
    with running("demo", *options, text=True) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        assert line.startswith("Metrics: http://127.0.0.1:")
        address = line.removeprefix("Metrics: ").strip()
        seen = ""
        while process.poll() is None and "localdelay_breaker_state" not in seen:
            with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=5) as answer:
                seen = answer.read().decode()
        assert 'localdelay_up{queue="demo"} 1.0' in seen
        assert "localdelay_fallback_published_messages_total" in seen
        out, _ = process.communicate(timeout=200)
    assert json.loads(out)["fallback"]["lost"] == 0


def test_the_metrics_of_a_relay() -> None:
    """What waits is in them while it waits."""
    with running("relay", "--to", "stdout:", "--delay", "60s", "--metrics", "0", text=True) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        address = process.stderr.readline().removeprefix("Metrics: ").strip()
        process.stdin.write("a\n")
        process.stdin.flush()
        seen, until = "", time.monotonic() + 100
        while 'localdelay_pending_messages{queue="relay"} 1.0' not in seen and time.monotonic() < until:
            with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=5) as answer:
                seen = answer.read().decode()
        assert 'localdelay_pending_messages{queue="relay"} 1.0' in seen


def test_it_begins_again_and_again() -> None:
    """With --forever there is an object for each run, until Ctrl-C."""
    options = ("--rate", "300", "--seconds", "100ms", "--delay", "100ms", "--metrics", "0", "--json")
    with running("demo", "--forever", *options, text=True) as process:
        assert process.stdout is not None
        ends = (line for line in process.stdout if line == "}\n")
        assert [next(ends), next(ends)] == ["}\n", "}\n"]
        process.send_signal(signal.SIGINT)
        assert process.wait(100) == 130


def test_a_port_for_metrics_that_is_taken() -> None:
    """One line, exit code 2, and no server is started."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run("demo", "--metrics", port)
    assert done.exit_code == 2
    assert done.stderr == f"Error: port {port} can't be used for metrics: Address already in use\n"
