"""`localdelay demo --metrics`: what Prometheus would read while it runs."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sysconfig
import urllib.request
from pathlib import Path

COMMAND = str(Path(sysconfig.get_path("scripts"), "localdelay"))


def test_metrics_are_served_while_it_runs() -> None:
    """On the port that it says; the queue and the fallback of the second run are in them."""
    process = subprocess.Popen(
        [COMMAND, "demo", "--rate", "500", "--seconds", "300ms", "--delay", "1s", "--metrics", "0", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
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
    out, _ = process.communicate(timeout=60)
    assert json.loads(out)["fallback"]["lost"] == 0


def test_a_port_for_metrics_that_is_taken() -> None:
    """One line, exit code 2, and no server is started."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = subprocess.run(
            [COMMAND, "demo", "--metrics", str(port)], capture_output=True, text=True, timeout=60, check=False
        )
    assert done.returncode == 2
    assert done.stderr == f"Error: port {port} can't be used for metrics: Address already in use\n"
