"""A RocketMQ: are the topics there, and of the types that they must have."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import trio

from localdelay.brokers.address import Address
from localdelay.brokers.checks.finding import Finding
from localdelay.brokers.rocketmq import driver_at
from localdelay.brokers.rocketmq_client import NoTopic, producer_of, why_no_route

_TYPES = {1: "NORMAL", 2: "FIFO", 3: "DELAY", 4: "TRANSACTION"}


async def look(where: Address) -> list[Finding]:
    """Look at the topic, and at the one for what is delayed."""
    driver = driver_at(where)
    async with await driver.knock():
        pass  # the client would wait, and say nothing of why nobody answers
    ask = partial(_types, where, driver.topics)
    types = await trio.to_thread.run_sync(ask, abandon_on_cancel=True)
    found = [finding(topic, needed, types.get(topic), driver) for topic, needed in driver.topics.items()]
    confirms = Finding("confirms", None, "as durable as the broker's flushDiskType says, which can't be seen")
    return [*found, confirms, Finding("native delay", True, "whole seconds, up to ?max_delay=")]


def _types(where: Address, topics: Iterable[str]) -> dict[str, set[str]]:
    """What each topic takes; one that the broker does not show has no entry."""
    producer = producer_of(where)
    producer.startup()
    types: dict[str, set[str]] = {}
    try:
        for topic in topics:
            try:
                route = producer.route_manager.retrieve_topic_route_data(topic)
            except Exception as error:
                why = why_no_route(producer, topic)
                if isinstance(why, NoTopic):
                    continue
                raise why from error
            takes = [queue.accept_message_types for queue in route.message_queues]
            types[topic] = {_TYPES.get(one, "?") for one in set().union(*takes)}
    finally:
        producer.shutdown()
    return types


def finding(topic: str, needed: set[str], takes: set[str] | None, driver: Any) -> Finding:
    """What the types of messages that a topic takes come to; None: the broker shows no such topic."""
    what = "topic" if "NORMAL" in needed else "delay topic"
    if takes is None:
        return Finding(what, False, f"the broker shows no {topic}", driver.command(topic))
    if missing := " and ".join(sorted(needed - takes)):
        return Finding(what, False, f"{topic} takes no {missing} messages", driver.command(topic))
    return Finding(what, True, f"{topic} takes {' and '.join(sorted(needed))} messages")
