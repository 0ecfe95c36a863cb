"""`localdelay journal`: look at a journal that no queue uses, send it from elsewhere, or empty it."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from datetime import datetime
from functools import partial
from operator import attrgetter
from pathlib import Path
from textwrap import wrap
from typing import Any, Final

import attrs
import click

from localdelay import arguments
from localdelay.cli.options import OUTPUT, naming_options, option, report_options
from localdelay.cli.output import WIDTH, Block, Lines, Output, Row, Styled, Table, pieces
from localdelay.cli.terminal import BrokeOff, Commands, ask, printable, stopped, tell
from localdelay.errors import JournalError
from localdelay.journal.contents import Amount, Contents, contents, size
from localdelay.journal.layout import VERSION
from localdelay.journal.record import Record
from localdelay.journal.sqlite import SqliteJournal
from localdelay.relay.lines import of_journal
from localdelay.relay.saving import open_lines, save
from localdelay.relay.settings import Settings
from localdelay.units import counted, format_duration, format_number, format_size

_EPILOG = """\b
A service that is started again on its journal sends what is in it.
`export` is for one that never will be:
  localdelay journal show orders.journal
  localdelay journal export orders.journal |
    localdelay relay --to nats://127.0.0.1:4222/orders --format jsonl
  localdelay journal purge --all orders.journal
To take a journal elsewhere, copy PATH together with PATH-wal.

\b
Exit codes:
  0    done
  1    the output broke off, not all was removed that was asked for, or
       `salvage` has lost something
  2    wrong options, or the journal can't be used: it is left as it is
  130  stopped by SIGINT
"""
_SHOW = """\b
Times are local, with their zone; in JSON and CSV they are Unix time in
seconds. CSV is of the messages if they are listed. Nothing of a payload is
shown.
"""
_EXPORT = """\b
A line has the payload, the id, the headers, and when the message is due, as
`at`: so what is left of its delay is right wherever and whenever it is read.
What is overdue then is sent at once. A dead letter has its `error`, too. How
often a message was tried has no place in a line: the relay begins at 1.

\b
Lines come in the order in which they are due, so that a relay that can't hold
all of them holds the right ones. They are appended to FILE, which only its
owner may read if it is new.

\b
The journal stays as it is: a queue that opens it sends all of it again, under
the same ids. Purge it when the relay has ended well.
"""
_SALVAGE = """\b
A message is sound if its checksum holds; what else there is is named, and
makes the exit code 1. PATH stays as it is: move it away, and NEW to its place.
"""
_PURGE = """\b
They are gone for good: `export` them first. The file keeps its size, and what
is free in it is used again.
"""
_AT_ONCE: Final = 1_000
_MAX_LINE: Final = Settings(to="stdout:", delay=0.0).max_line
_LASTING_FILES: Final = ("", "-wal", "-reserve")
_OWN_FILES: Final = (*_LASTING_FILES, "-shm", "-lock", "-new")
_ERRORS_SHOWN = 5
_UNDER = " " * 16
_MESSAGE = ("id", "due", "attempt", "bytes", "expires", "error")


@click.group(cls=Commands, epilog=_EPILOG, short_help="Look at the journal of a queue, export or empty it.")
def journal() -> None:
    """Look at the journal of a queue that is not running, export it, or empty it.

    A journal is the file in which a queue keeps its messages across a crash or a restart.
    """


@journal.command(epilog=_SHOW)
@click.argument("path")
@option("--messages listed", bool, "List the messages, too, as they are due.")
@option("--limit", int, "List N messages at most: 20, 10k.", metavar="N")
@report_options
@click.pass_context
def show(ctx: click.Context, path: str, *, listed: bool, limit: int | None, form: str | None) -> None:
    """Show how much a journal holds, and when it is due."""
    if limit is not None and not listed:
        raise click.UsageError("--limit is for --messages", ctx)
    if limit is not None:
        with naming_options():
            arguments.count("limit", limit)
    output = Output()
    source = _journal(path)
    held = source.read()
    now = time.time()
    looked = Looked(
        path=source.path,
        version=VERSION,
        disk_bytes=sum(file.stat().st_size for file in _files(source, _LASTING_FILES) if file.exists()),
        now=now,
        contents=contents(held, now),
    )
    rows = sorted(held, key=attrgetter("due"))[:limit] if listed else None
    if form == "csv" and rows is not None:
        blocks: Iterable[Block] = [message_table(rows)]
    else:
        blocks = report(looked, rows, len(held), output.columns)
    output.report(form, blocks, as_json(looked, rows))


@journal.command(epilog=_EXPORT)
@click.argument("path")
@option("--output file", OUTPUT, "Not to standard output.", metavar="FILE")
@option("--dead", bool, "Dead letters, too.")
@option("--dead-only", bool, "Dead letters, and nothing else.")
@click.pass_context
def export(ctx: click.Context, path: str, *, file: Path | None, dead: bool, dead_only: bool) -> None:
    """Write the messages as the JSON lines that the relay reads."""
    if dead and dead_only:
        raise click.UsageError("only one of --dead and --dead-only can be given", ctx)
    output = Output() if file is None else None
    source = _journal(path)
    own = _files(source, _OWN_FILES)
    if file.resolve() in own if file else output is not None and output.is_one_of(own):
        raise click.BadParameter("must not be a file of the journal", ctx, param_hint="'--output'")
    held = source.read()
    chosen = [record for record in held if dead or (record.dead is not None) == dead_only]
    left_out = 0 if dead_only else len(held) - len(chosen)
    del held
    chosen.sort(key=attrgetter("due"))
    longest, now = 0, time.time()

    def line(record: Record) -> bytes:
        nonlocal longest
        content = of_journal(record, now)
        longest = max(longest, len(content) - 1)
        return content

    if output is not None:
        for piece in pieces(map(line, chosen)):
            output.write(b"".join(piece))
    elif file is not None:
        count = counted(len(chosen), "message")
        saved = save(chosen, line, [(file, partial(open_lines, file))])
        for _, reason in saved.failures:
            written = f"it has {len(chosen) - saved.lost:,} of {count}"
            raise BrokeOff(f"'{file}' can't be written: {reason}; {written}")
        tell(f"Appended {count} to {printable(str(file))}.")
    if left_out:
        tell(f"Left out {counted(left_out, 'dead letter')}: --dead exports them, too.")
    if longest > _MAX_LINE:
        tell(f"The longest line has {longest:,} bytes: the relay needs --max-line {longest}.")


@journal.command(epilog=_SALVAGE)
@click.argument("path")
@option("--to", str, "The journal to make, which must not be there.", metavar="NEW", required=True)
@click.pass_context
def salvage(ctx: click.Context, path: str, *, to: str) -> None:
    """Take what is sound out of a journal that is damaged."""
    with closing(_journal(to)) as new:
        output = Output()
        if new.path.exists():
            raise click.BadParameter("must not be there yet", ctx, param_hint="'--to'")
        held, lost = _journal(path).salvage()
        new.open()
        for begin in range(0, len(held), _AT_ONCE):
            new.write(held[begin : begin + _AT_ONCE], [], durable=True)
        new.write([], [], {record.key for record in held if record.sending}, durable=True)
        for what in lost:
            tell(f"Lost: {printable(what)}.")
        what = f"{counted(len(held), 'message')} ({sum(map(size, held)):,} bytes)"
        output.text([f"Salvaged {what} to {printable(str(new.path))}."])
    if lost:
        ctx.exit(1)


@journal.command(epilog=_PURGE)
@click.argument("path")
@option("--dead", bool, "Remove the dead letters.")
@option("--id ids", str, "Remove what has this id; repeatable.", multiple=True, metavar="ID")
@option("--all everything", bool, "Remove all messages and dead letters.")
@option("--yes", bool, "Don't ask.")
@click.pass_context
def purge(
    ctx: click.Context, path: str, *, dead: bool, ids: tuple[str, ...], everything: bool, yes: bool
) -> None:
    """Remove messages for good."""
    if dead + bool(ids) + everything != 1:
        raise click.UsageError("exactly one of --dead, --id and --all must be given", ctx)
    with closing(_journal(path)) as store:
        output = Output()
        store.check()  # what is not there would be made
        held = [Record(*kept) for kept in store.open()]
        wanted = frozenset(ids)
        chosen = [
            record
            for record in held
            if everything or (dead and record.dead is not None) or record.id in wanted
        ]
        missing = sorted(wanted - {record.id for record in chosen})
        amount = Amount(len(chosen), sum(map(size, chosen)))
        keys = [record.key for record in chosen]
        left = len(held) - len(keys)
        del held, chosen
        for name in missing:
            tell(f"There is no message with the id {name!r}.")
        what = f"{counted(amount.messages, 'message')} ({amount.bytes:,} bytes)"
        if keys and not yes:
            _ask(f"Remove {what} of {len(keys) + left:,} from {printable(str(store.path))}?")
        _remove(store, keys)
        output.text([f"Removed {what}, {left:,} left." if keys else f"Nothing to remove, {left:,} left."])
    if missing:
        ctx.exit(1)


def _journal(path: str) -> SqliteJournal:
    try:
        return SqliteJournal(path)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="'PATH'") from error


def _files(source: SqliteJournal, ends: Sequence[str]) -> list[Path]:
    return [Path(f"{source.path}{end}") for end in ends]


def _ask(question: str) -> None:
    try:
        answer = ask(question)
    except KeyboardInterrupt:
        stopped(signal.SIGINT, "Stopped by SIGINT: nothing was removed.")
    if answer is None:
        raise BrokeOff("nothing was removed: nobody has answered, and --yes was not given")
    if not answer:
        raise BrokeOff("nothing was removed")


def _remove(store: SqliteJournal, keys: Sequence[int]) -> None:
    # Not all in one go: the log would need as much room as they have, and the disk may be full.
    for begin in range(0, len(keys), _AT_ONCE):
        group = keys[begin : begin + _AT_ONCE]
        try:
            try:
                store.write([], group, durable=True)
            except JournalError:  # where the disk is full, that has given up the reserve
                store.write([], group, durable=True)
        except BaseException:
            if begin:
                tell(f"Removed {counted(begin, 'message')}, and no more.")
            raise


@attrs.frozen(kw_only=True)
class Looked:
    """A journal, looked at."""

    path: Path
    version: int
    disk_bytes: int
    """Of its files: the database, the log, and the room that it reserves."""
    now: float
    """Unix time in seconds."""
    contents: Contents


def report(looked: Looked, listed: Sequence[Record] | None, count: int, width: int | None) -> Iterator[Block]:
    """The figures, and the messages if they are given, of `count` in all; they are cut to `width`."""
    path = Styled(printable(f"Journal {looked.path}"), "bold")
    yield Lines([path, f"  version {looked.version}, {format_size(looked.disk_bytes)} on disk", ""])
    yield from _figures(looked.contents, looked.now, min(width or WIDTH, WIDTH))
    if listed is not None:
        yield Lines(["", *message_rows(listed, width)])
        if len(listed) < count:
            yield f"and {count - len(listed):,} more"


def _figures(found: Contents, now: float, width: int) -> Iterator[Block]:
    amounts = {"pending": found.pending}
    if found.pending.messages:
        amounts |= {
            "  overdue": found.overdue,
            "  within a minute": found.within_minute,
            "  within an hour": found.within_hour,
            "  later": found.later,
        }
    amounts["dead letters"] = found.dead
    rows = [Row(f"  {label}", [one.messages, one.bytes], format_number) for label, one in amounts.items()]
    yield Table(["messages", "bytes"], rows)
    if found.oldest_due is not None and found.newest_due is not None:
        facts = {"oldest due": _when(found.oldest_due, now), "newest due": _when(found.newest_due, now)}
        if found.retried:
            facts["tried before"] = f"{found.retried:,}, the most before attempt {found.highest_attempt:,}"
        if found.in_flight:
            facts["in flight"] = f"{found.in_flight:,}: sent alone, after the rest"
        if found.expiring:
            facts["expires"] = f"{found.expiring:,}, some time after they are due"
        told = (f"  {label:<14}{fact}" for label, fact in facts.items())
        yield Lines(["", *(line for fact in told for line in wrap(fact, width, subsequent_indent=_UNDER))])
    if found.errors:
        shown = found.errors[:_ERRORS_SHOWN]
        rest = found.dead.messages - sum(count for _, count in shown)
        lines = [_cut(f"{count:>9,}  {printable(error)}", width) for error, count in shown]
        yield Lines(["", "Given up for", *lines, *([f"{rest:>9,}  other errors"] if rest else [])])


def as_json(looked: Looked, listed: Sequence[Record] | None) -> dict[str, Any]:
    """One object, with the messages if they are given."""
    shown = attrs.asdict(looked)
    shown |= {"path": str(looked.path), **shown.pop("contents")}
    shown["errors"] = [{"error": error, "messages": count} for error, count in looked.contents.errors]
    return shown if listed is None else {**shown, "messages": list(map(_message_json, listed))}


def message_table(held: Sequence[Record]) -> Table:
    """The messages for a spreadsheet, as they are in JSON, but for what a terminal obeys."""
    shown = [[_safe(value) for value in _message_json(record).values()] for record in held]
    return Table(_MESSAGE, [Row("", values) for values in shown])


def message_rows(held: Sequence[Record], width: int | None) -> Iterator[str]:
    """A line for each message, and one before them, cut to `width` characters where there is one.

    Where even the figures have no room, each message has lines of its own.
    """
    ids = max((len(record.id) for record in held), default=0)
    ids = min(max(ids, len("id")), 40)
    head = f"{'id':<{ids}}  {'due':<25}  attempt  {'bytes':>9}"
    narrow = width if width is not None and width < len(head) else None
    if narrow is None:
        yield f"{head}  given up for"[:width]
    for record in held:
        name, error = printable(record.id), "" if record.dead is None else printable(record.dead)
        due = _local(record.due, "%Y-%m-%d %H:%M:%S%z")
        if narrow is None:
            text = f"{name:<{ids}}  {due:<25}  {record.attempt:>7}  {size(record):>9,}  {error}".rstrip()
            yield text if width is None else _cut(text, width)
        else:
            text = f"{name}: due {due}, attempt {record.attempt}, {counted(size(record), 'byte')}"
            text = f"{text}, given up for {_cut(error, WIDTH)}" if error else text
            yield from wrap(text, narrow, subsequent_indent="  ")


def _message_json(record: Record) -> dict[str, object]:
    values = record.id, record.due, record.attempt, size(record), record.expires, record.dead
    return dict(zip(_MESSAGE, values, strict=True))


def _safe(value: object) -> object:
    return printable(value) if isinstance(value, str) else value


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _when(due: float, now: float) -> str:
    left = due - now
    far = format_duration(abs(left) if abs(left) < 10 else round(abs(left)))
    when = _local(due, "%Y-%m-%d %H:%M:%S %z (%Z)")
    return f"{when}, {far} ago" if left <= 0 else f"{when}, in {far}"


def _local(timestamp: float, form: str) -> str:
    try:
        return datetime.fromtimestamp(timestamp).astimezone().strftime(form)
    except (OverflowError, ValueError, OSError):
        return "outside of the calendar"
