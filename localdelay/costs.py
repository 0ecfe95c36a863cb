"""What a call takes of a quota, where calls do not count alike: functions for the `cost` of a limit."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import attrs

from . import arguments
from .message import Message

__all__ = ["APSARA_ROCKETMQ", "TDMQ_ROCKETMQ", "ByParts", "Cost"]

Cost: TypeAlias = Callable[[Message, bool], float]
"""What a call with this message takes; the second argument says whether it is a delayed publish.

It only computes: it is called in the midst of a look at the queue, which it must not change.
"""


@attrs.frozen
class ByParts:
    """A call counts 1 for each part of the payload that has begun, and a delayed one several times that."""

    delayed: float = attrs.field(validator=arguments.field_at_least(0))
    """What a delayed publish counts, where an ordinary one counts 1."""
    part_bytes: int = attrs.field(validator=arguments.field_count)

    def __call__(self, message: Message, delayed: bool) -> float:
        """What a call with this message takes of the quota."""
        parts = max(1, -(-len(message.payload) // self.part_bytes))
        return parts * self.delayed if delayed else parts


APSARA_ROCKETMQ = ByParts(5, 4096)
"""ApsaraMQ for RocketMQ: scheduled and delayed messages count five times, and by 4 KB of the body.

Alibaba Cloud, ApsaraMQ for RocketMQ 5.x, "Computing fees", "TPS calculation rules" (15 January 2025).
"""

TDMQ_ROCKETMQ = ByParts(5, 4096)
"""TDMQ for RocketMQ: the same rule.

Tencent Cloud, TDMQ for RocketMQ, "Billing overview", "Computing specifications", as "Traffic throttling"
refers to it (23 January 2026).
"""
