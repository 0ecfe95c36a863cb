"""When to try again and when to give up. Pure: the jitter is drawn by the caller."""

from __future__ import annotations

import attrs

from localdelay import arguments
from localdelay.backoff import grown
from localdelay.errors import PermanentSendError, Throttled, asked_wait


@attrs.frozen
class RetryPolicy:
    """How often a failed send is tried again, and how long it waits; the names are stamina's.

    The wait after the n-th failure is min(wait_max, wait_initial · wait_exp_base^(n-1) + jitter)
    seconds, the jitter drawn uniformly from 0 to `wait_jitter`. An argument that is no number is a
    `TypeError`; one that is negative, NaN or infinite is a `ValueError`.
    """

    attempts: int | None = attrs.field(default=None, validator=arguments.field_count_or_none)
    """Sends in all, the first one included; None: for as long as the process lives."""
    wait_initial: float = attrs.field(default=0.1, validator=arguments.field_at_least(0))
    wait_max: float = attrs.field(default=30.0, validator=arguments.field_at_least(0))
    wait_jitter: float = attrs.field(default=1.0, validator=arguments.field_at_least(0))
    wait_exp_base: float = attrs.field(default=2.0, validator=arguments.field_at_least(1))

    def wait(self, failures: int, jitter: float) -> float:
        """Seconds to wait after this many failures; `jitter` is a draw from 0 to 1."""
        wait = grown(failures, first=self.wait_initial, most=self.wait_max, base=self.wait_exp_base)
        return min(self.wait_max, wait + self.wait_jitter * jitter)


@attrs.frozen
class Retry:
    """Try again after `wait` seconds; the next send is number `attempt`."""

    wait: float
    attempt: int


def after_failure(
    policy: RetryPolicy, error: Exception, *, attempt: int, failures: int, jitter: float
) -> Retry | None:
    """What follows a failed send: a retry, or None for giving the message up.

    `attempt` is the number of the send that failed, and `failures` counts every failed send of this
    message: more than `attempt` where some were throttled, for these use up no attempt but do back off.
    """
    if isinstance(error, PermanentSendError):
        return None
    wait = wait_after(policy, error, failures=failures, jitter=jitter)
    if isinstance(error, Throttled):
        return Retry(wait, attempt)
    if policy.attempts is not None and attempt >= policy.attempts:
        return None
    return Retry(wait, attempt + 1)


def wait_after(policy: RetryPolicy, error: Exception, *, failures: int, jitter: float) -> float:
    """Seconds to wait: what the broker asked for, up to `wait_max`, else the policy's."""
    asked = asked_wait(error)
    return policy.wait(failures, jitter) if asked is None else min(asked, policy.wait_max)
