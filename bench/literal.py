"""The write-up's plan 2, ported to Trio word for word: what localdelay is measured against."""

from __future__ import annotations

from localdelay.benchmark.contenders import LiteralPort, Send, Waiting, open_literal_port

__all__ = ["LiteralPort", "Send", "Waiting", "open_literal_port"]
