"""What `localdelay journal show` prints of a journal: never anything of a payload."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from textwrap import wrap
from typing import Any

import attrs

from localdelay.cli.output import WIDTH, Block, Lines, Row, Styled, Table
from localdelay.cli.terminal import printable
from localdelay.journal.contents import Contents, size
from localdelay.journal.record import Record
from localdelay.units import counted, format_duration, format_number, format_size

_ERRORS_SHOWN = 5
_UNDER = " " * 16
_MESSAGE = ("id", "due", "attempt", "bytes", "expires", "error")


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
