"""A Kafka: is the topic there, and do the replicas that confirm suffice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import trio
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, ConfigResource  # type: ignore[attr-defined]

from localdelay.brokers.address import Address
from localdelay.brokers.checks.finding import NO_DELAY, Finding
from localdelay.brokers.kafka import settings_of
from localdelay.brokers.kafka_errors import ALL_DOWN, NOT_THERE, kafka_error, shown

_TIMEOUT = 5.0
_LOOKED_AT = ("cleanup.policy", "min.insync.replicas")


async def look(where: Address) -> list[Finding]:
    """Look at the topic."""
    return await trio.to_thread.run_sync(_look, where, abandon_on_cancel=True)


def _look(where: Address) -> list[Finding]:
    settings: dict[str, Any] = settings_of(where, _TIMEOUT)
    acks = f"{settings.get('request.required.acks', settings['acks'])}"
    troubles: list[KafkaError] = []  # why nobody answers the client says here, and not where it gives up
    settings |= {"log_level": 0, "error_cb": troubles.append}
    try:
        client = AdminClient(settings)
    except Exception as error:  # noqa: BLE001 (confluent-kafka checks some itself, each in its own way)
        carried = kafka_error(error)
        raise ValueError(f"options that librdkafka does not take: {carried and carried.str()}") from None
    try:
        topic = client.list_topics(where.target, timeout=_TIMEOUT).topics[where.target]
        if topic.error is not None:
            return [not_there(where.target, topic.error)]
        resource = ConfigResource(ConfigResource.Type.TOPIC, where.target)
        asked = client.describe_configs([resource], request_timeout=_TIMEOUT)[resource]
    except KafkaException as error:
        client.poll(0)
        why = [one for one in troubles if one.code() not in ALL_DOWN] or [error.args[0]]
        raise ConnectionError(shown(why[-1])) from None
    try:
        told = {name: entry.value for name, entry in asked.result().items() if name in _LOOKED_AT}
    except KafkaException:  # not everybody may ask
        told = {}
    replicas = min((len(one.replicas) for one in topic.partitions.values()), default=0)
    return findings(where.target, replicas, told, acks)


def not_there(topic: str, error: KafkaError) -> Finding:
    """What it means that a topic is not shown. Pure."""
    if error.code() not in NOT_THERE:
        return Finding("topic", False, error.str(), "see to it that this user may write to it")
    create = "kafka-topics.sh --bootstrap-server HOST --create --topic"
    return Finding("topic", False, "not there", f"{create} {topic}")


def findings(topic: str, replicas: int, told: Mapping[str, str], acks: str) -> list[Finding]:
    """What a topic's metadata and settings come to. Pure."""
    alter = f"kafka-configs.sh --bootstrap-server HOST --alter --topic {topic} --add-config"
    found = [Finding("topic", True, "there")]
    if "compact" in told.get("cleanup.policy", ""):
        said = "compacted: it refuses messages without a key, as these are"
        found.append(Finding("cleanup", False, said, f"{alter} cleanup.policy=delete"))
    in_sync = told.get("min.insync.replicas")
    if acks not in ("all", "-1"):
        said = f"acks={acks}: confirmed before the replicas have it"
        found.append(Finding("confirms", False, said, "leave acks out of the URL"))
    elif replicas == 1:
        found.append(Finding("confirms", None, "there is one replica: its disk is all there is"))
    elif in_sync is None:
        found.append(
            Finding("confirms", None, f"{replicas} replicas; how many must be in sync it does not say")
        )
    elif int(in_sync) < 2:
        said = f"by one of {replicas} replicas, where the others lag"
        found.append(Finding("confirms", False, said, f"{alter} min.insync.replicas=2"))
    else:
        found.append(Finding("confirms", True, f"by {in_sync} of {replicas} replicas at least"))
    return [*found, NO_DELAY]
