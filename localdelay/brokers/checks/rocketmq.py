"""A RocketMQ: are the topics there, and of the types that they must have."""

from __future__ import annotations

from contextlib import suppress
from functools import partial

import trio

from localdelay.brokers.address import Address
from localdelay.brokers.checks.finding import Finding
from localdelay.brokers.rocketmq_client import producer_of

_TYPES = {1: "NORMAL", 2: "FIFO", 3: "DELAY", 4: "TRANSACTION"}


async def look(where: Address) -> list[Finding]:
    """Look at the topic, and at the one for what is delayed."""
    async with await trio.open_tcp_stream(where.host, where.port):
        pass  # the client would wait, and say nothing of why nobody answers
    delay_topic = where.options.get("delay_topic", where.target)
    topics = {where.target: {"NORMAL"}}
    topics.setdefault(delay_topic, set()).add("DELAY")
    ask = partial(_types, where, list(topics))
    types = await trio.to_thread.run_sync(ask, abandon_on_cancel=True)
    return findings(topics, types)


def _types(where: Address, topics: list[str]) -> dict[str, set[str]]:
    """What each topic takes; one that the broker does not show has no entry."""
    producer = producer_of(where)
    producer.startup()
    types: dict[str, set[str]] = {}
    try:
        for topic in topics:
            with suppress(Exception):  # the client keeps to itself why there is none
                route = producer.route_manager.retrieve_topic_route_data(topic)
                takes = [queue.accept_message_types for queue in route.message_queues]
                types[topic] = {_TYPES.get(one, "?") for one in set().union(*takes)}
    finally:
        producer.shutdown()
    return types


def findings(topics: dict[str, set[str]], types: dict[str, set[str]]) -> list[Finding]:
    """What the types that topics have come to, beside those that they must take. Pure."""
    found = []
    for topic, needed in topics.items():
        what = "topic" if "NORMAL" in needed else "delay topic"
        kind = "MIXED" if len(needed) > 1 else next(iter(needed))
        change = f"mqadmin updateTopic -n NAMESRV -c CLUSTER -t {topic} -a +message.type={kind}"
        if topic not in types:
            found.append(Finding(what, False, f"the broker shows no {topic}", change))
        elif needed <= types[topic]:
            found.append(Finding(what, True, f"{topic} takes {' and '.join(sorted(needed))} messages"))
        else:
            missing = " and ".join(sorted(needed - types[topic]))
            found.append(Finding(what, False, f"{topic} takes no {missing} messages", change))
    confirms = Finding("confirms", None, "as durable as the broker's flushDiskType says, which can't be seen")
    return [*found, confirms, Finding("native delay", True, "whole seconds, up to ?max_delay=")]
