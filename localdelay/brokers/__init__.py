"""One module a broker: send and confirm, tell throttling from failing, native delay where there is one.

A module imports its client at the top, so nothing here imports the modules: each needs an extra. What each
does stands in README.md.

    wire        what travels with a message
    broker      what every broker has
    address     a broker's URL
    opening     `open_broker`
    outbox      what waits and what is under way
    driver      what the publisher asks of a client
    publisher   what all brokers share
    line        a socket with answers in order
    checks      whether a broker is set up for this
    stdout      lines on standard output
    redis       by coredis; redis_line: the connection; redis_masters: who takes writes
    beanstalkd  on a line of its own; nsq: likewise
    amqp        RabbitMQ, by pika; amqp_session: the connection; amqp_channel: confirms; amqp_delays: queues
                that delay; amqp_errors: what is throttling
    kafka       by confluent-kafka; kafka_producer: the producer and its thread; kafka_errors: what they mean
    rocketmq    by its official client; rocketmq_client: how that is imported
    nats        likewise; nats_line: the connection; nats_answers: what is said there
"""

from .address import hide_secrets
from .broker import Broker, ConnectionClosed, ConnectionLost
from .opening import STDOUT, check_url, open_broker, without_secrets

__all__ = [
    "STDOUT",
    "Broker",
    "ConnectionClosed",
    "ConnectionLost",
    "check_url",
    "hide_secrets",
    "open_broker",
    "without_secrets",
]
