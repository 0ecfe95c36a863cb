"""What is found of a broker that is looked at."""

from __future__ import annotations

import attrs


@attrs.frozen
class Finding:
    """One thing that matters here."""

    what: str
    """In two words: "topic", "eviction"."""
    is_well: bool | None
    """None: it is for whoever reads it to judge, or can't be seen from here."""
    found: str
    """How it is."""
    change: str = ""
    """What to do about it, a command where there is one; only where it is not well."""


NO_DELAY = Finding("native delay", None, "none: messages wait here, and none is handed back")
"""What is said of a broker without a delay of its own."""
