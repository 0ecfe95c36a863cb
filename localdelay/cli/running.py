"""What commands that run for a while share: their metrics, their pictures, and how they end."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeAlias

from localdelay.benchmark import plot
from localdelay.cli.terminal import Failed, Teller, can_be_live, reason, stopped, tell
from localdelay.signals import Stopped

Export: TypeAlias = Callable[[Any, Any], None]
"""Is given a queue, and its fallback or None, to be exported while the command runs."""


@contextmanager
def exporter(port: int | None, name: str) -> Iterator[Export | None]:
    """What to export a queue with: over HTTP, or not at all."""
    if port is None:
        yield None
        return
    from localdelay.metrics import Collector, serve

    collector, exported = Collector(), list[Any]()

    def export(queue: Any, fallback: Any) -> None:
        for ended in exported:
            collector.remove(ended)
        exported[:] = [queue]
        collector.add(queue, fallback, labels={"queue": name})

    with ExitStack() as stack:
        try:
            served = stack.enter_context(serve(collector, port=port))
        except OSError as error:
            raise Failed(f"port {port} can't be used for metrics: {error.strerror}") from error
        tell(f"Metrics: http://127.0.0.1:{served}/metrics")
        yield export


@contextmanager
def measuring(quiet: bool, stopped_text: str, picture: Path | None = None) -> Iterator[Teller]:
    """A measurement, with who tells of its progress; what ends it is said in a line."""
    # What the library would log is in the report.
    logging.getLogger("localdelay").addHandler(logging.NullHandler())
    if picture is not None and not plot.available():
        raise Failed("--plot needs matplotlib: pip install 'localdelay[plot]'")
    teller = Teller(live=not quiet and can_be_live(), status=not quiet)
    try:
        with teller:
            yield teller
    except Stopped as error:
        stopped(error.signum, stopped_text)
    except OSError as error:
        raise Failed(reason(error)) from error
