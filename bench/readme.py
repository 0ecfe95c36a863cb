"""Put the tables of what was measured last into the README beside this: `python -m bench.readme`.

Each goes between `<!-- NAME -->` and `<!-- end of NAME -->`; what was never measured is left as it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from . import brokers, compare, extremes, faults, journal, peers_table, valve
from .samples import RESULTS, ROOT, Result, load

TABLES: dict[str, Callable[[Result], Iterator[str]]] = {
    "peers": peers_table.lines,
    "valve": valve.lines,
    "journal": journal.lines,
    "brokers": brokers.lines,
    "extremes": extremes.lines,
    "faults": faults.lines,
    "compare": compare.lines,
}


def filled(text: str, name: str, table: str) -> str:
    """The text with this table in its place."""
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    return re.sub(f"(?<={begin}).*?(?={end})", lambda _: f"\n{table}\n\n", text, flags=re.DOTALL)


def main() -> None:
    path = ROOT / "bench" / "README.md"
    text = path.read_text()
    for name, lines in TABLES.items():
        if (RESULTS / f"{name}.json").exists():
            text = filled(text, name, "\n".join(lines(load(name))))
    path.write_text(text)


if __name__ == "__main__":
    main()
