"""What `localdelay journal show` prints of a journal: never anything of a payload."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path

import attrs

from localdelay.cli.output import WIDTH, Styled, row
from localdelay.cli.terminal import printable
from localdelay.journal.contents import Amount, Contents, size
from localdelay.journal.record import Record
from localdelay.units import format_duration, format_size

_ERRORS_SHOWN = 5
_row = partial(row, label_width=19, cell_width=18)


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


def lines(looked: Looked, rows: Sequence[Record] | None, count: int, width: int | None) -> Iterator[str]:
    """The report: a table, and the messages if they are given, of `count` in all; they are cut to `width`."""
    yield Styled(printable(f"Journal {looked.path}"), "bold")
    yield from _table(looked)
    if rows is not None:
        yield ""
        yield from message_rows(rows, width)
        if len(rows) < count:
            yield f"and {count - len(rows):,} more"


def _table(looked: Looked) -> Iterator[str]:
    found = looked.contents
    yield f"  version {looked.version}, {format_size(looked.disk_bytes)} on disk"
    yield ""
    yield _row("", ["messages", "bytes"])
    yield _amount("pending", found.pending)
    if found.pending.messages:
        yield _amount("  overdue", found.overdue)
        yield _amount("  within a minute", found.within_minute)
        yield _amount("  within an hour", found.within_hour)
        yield _amount("  later", found.later)
    yield _amount("dead letters", found.dead)
    if found.oldest_due is not None and found.newest_due is not None:
        yield ""
        yield f"  oldest due    {_when(found.oldest_due, looked.now)}"
        yield f"  newest due    {_when(found.newest_due, looked.now)}"
        if found.retried:
            tried = f"{found.retried:,}, the most before attempt {found.highest_attempt:,}"
            yield f"  tried before  {tried}"
        if found.in_flight:
            yield f"  in flight     {found.in_flight:,}: sent alone, after the rest"
        if found.expiring:
            yield f"  expires       {found.expiring:,}, some time after they are due"
    if found.errors:
        yield ""
        yield "Given up for"
        shown = found.errors[:_ERRORS_SHOWN]
        for error, count in shown:
            yield _cut(f"{count:>9,}  {printable(error)}", WIDTH)
        rest = found.dead.messages - sum(count for _, count in shown)
        if rest:
            yield f"{rest:>9,}  other errors"


def as_json(looked: Looked, rows: Sequence[Record] | None) -> Iterator[str]:
    """One JSON object, in lines; the messages are in it if they are given, each in a line of its own."""
    found = attrs.asdict(looked.contents)
    found["errors"] = [{"error": error, "messages": count} for error, count in looked.contents.errors]
    head = {
        "path": str(looked.path),
        "version": looked.version,
        "disk_bytes": looked.disk_bytes,
        "now": looked.now,
        **found,
    }
    text = json.dumps(head, indent=2)
    if rows is None:
        yield text
        return
    yield text.removesuffix("\n}") + ',\n  "messages": ['
    for number, record in enumerate(rows, 1):
        yield f"    {_message_json(record)}{',' if number < len(rows) else ''}"
    yield "  ]\n}"


def message_rows(held: Sequence[Record], width: int | None) -> Iterator[str]:
    """A line for each message, and one before them; cut to `width` characters where there is one."""
    ids = max((len(record.id) for record in held), default=0)
    ids = min(max(ids, len("id")), 40)
    yield f"{'id':<{ids}}  {'due':<25}  attempt  {'bytes':>9}  given up for".rstrip()
    for record in held:
        error = "" if record.dead is None else printable(record.dead)
        due = _local(record.due, "%Y-%m-%d %H:%M:%S%z")
        text = f"{printable(record.id):<{ids}}  {due:<25}  {record.attempt:>7}  {size(record):>9,}  {error}"
        yield text.rstrip() if width is None else _cut(text.rstrip(), width)


def _message_json(record: Record) -> str:
    shown = {"id": record.id, "due": record.due, "attempt": record.attempt, "bytes": size(record)}
    return json.dumps({**shown, "expires": record.expires, "error": record.dead})


def _amount(label: str, amount: Amount) -> str:
    return _row(f"  {label}", [f"{amount.messages:,}", f"{amount.bytes:,}"])


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
