"""The README as an index page can show it: its links are to files, which are named there instead."""

import re
from pathlib import Path

from hatchling.metadata.plugin.interface import MetadataHookInterface

LINK = re.compile(r"\[([^]]*)\]\((?!https?:)([^)#]*)[^)]*\)")


class Readme(MetadataHookInterface):
    """`[the journal](localdelay/journal/README.md)` becomes: the journal (`localdelay/journal/README.md`)."""

    def update(self, metadata: dict[str, object]) -> None:
        """Set the one field that is dynamic."""
        text = Path(self.root, "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": LINK.sub(r"\1 (`\2`)", text)}
