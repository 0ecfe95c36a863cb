"""The connection to RabbitMQ, on the Trio loop; it is made again whenever it is lost."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import attrs
import pika
import pika.channel
import pika.exceptions
import trio
from pika import frame
from pika.adapters.select_connection import SelectConnection

from localdelay.backoff import Backoff
from localdelay.brokers import amqp_errors
from localdelay.brokers.amqp_channel import ConfirmedChannel, Publish
from localdelay.brokers.amqp_frames import DelayQueueType
from localdelay.brokers.amqp_loop import Loop, logger, quiet

_WRITTEN_AHEAD: Final = 1024 * 1024
_ROOM_POLL: Final = 0.005
_CLOSE_GRACE: Final = 1.0
_CLOSE_POLL: Final = 0.005
_TURNS: Final = 20


@attrs.frozen
class Node:
    """Where RabbitMQ is, and as whom to connect."""

    host: str
    port: int
    virtual_host: str
    username: str = attrs.field(repr=False)
    password: str = attrs.field(repr=False)
    tls: ssl.SSLContext | None
    heartbeat: int
    """Seconds; 0: none."""
    connect_timeout: float

    def parameters(self, address: str, name: str) -> pika.ConnectionParameters:
        """As pika takes them, for one address of the host; the broker shows the connection by the name."""
        return pika.ConnectionParameters(
            address,
            self.port,
            self.virtual_host,
            pika.PlainCredentials(self.username, self.password),
            heartbeat=self.heartbeat,
            # Longer than what is waited for here.
            socket_timeout=2 * self.connect_timeout,
            stack_timeout=2 * self.connect_timeout,
            ssl_options=None if self.tls is None else pika.SSLOptions(self.tls, self.host),
            client_properties={"connection_name": name},
        )


class Connection:
    """Publishes what is given to it, and settles it. Of one Trio loop."""

    def __init__(
        self, node: Node, queue: str, *, confirm_timeout: float, delay_queue_type: DelayQueueType
    ) -> None:
        self._node = node
        self._name = f"localdelay {queue}"
        self._confirm_timeout = confirm_timeout
        self._at_once = ConfirmedChannel(self, 1, queue, delay_queue_type)
        self._delayed = ConfirmedChannel(self, 2, queue, delay_queue_type)
        self._channels = (self._at_once, self._delayed)
        self._loop = Loop()
        self._connection: SelectConnection | None = None
        self._changed = trio.Event()  # the connection is ready, or lost
        self._filled = trio.Event()
        self._blocked: str | None = None
        self._trouble = "it is not connected yet"
        self._closed = False
        self._scope = trio.CancelScope()
        self._opened = trio.Event()
        self._failed: ConnectionError | None = None
        self._ended = trio.Event()
        # A system task, so that neither a cancellation nor a Ctrl-C gets into the midst of pika, and what
        # leaves the caller's block can still wait for confirmations.
        trio.lowlevel.spawn_system_task(self._main, name=self._name)

    async def opened(self) -> None:
        """Wait until the first connection stands. Raises `ConnectionError` where none comes about."""
        await self._opened.wait()
        if self._failed is not None:
            raise self._failed

    def publish(self, publishes: Sequence[Publish]) -> None:
        """Have messages published and settled.

        Raises `Throttled` while the broker blocks the connection, and `ConnectionError` once it is closed.
        """
        if self._closed:
            raise _closed()
        if self._blocked is not None and publishes:
            raise self._throttled()
        for publish in publishes:
            (self._delayed if publish.delay else self._at_once).outbox.append(publish)
        if self._at_once.ready and not (self._at_once.unconfirmed or self._delayed.unconfirmed):
            self._pump_at_once()
        if self._at_once.outbox or self._delayed.outbox:
            self._filled.set()

    @trio.lowlevel.enable_ki_protection
    def _pump_at_once(self) -> None:
        # Saves a turn of the loop where it counts; what comes next in this turn is written together.
        with quiet():
            self._guard(self._pump)

    def deadline(self) -> float:
        """When a message that is published now will have taken too long, on Trio's clock."""
        return trio.current_time() + self._confirm_timeout

    async def close(self) -> None:
        """End the connection and whatever is still under way, within about a second."""
        self._closed = True
        with trio.CancelScope(shield=True), quiet():
            with trio.move_on_after(_CLOSE_GRACE):
                while any(channel.busy for channel in self._channels):  # noqa: ASYNC110 (just once)
                    await trio.sleep(_CLOSE_POLL)
                if self._connection is not None and self._connection.is_open:
                    self._guard(self._connection.close)
                    self._guard(self._loop.turn)
                    while self._connection is not None:  # noqa: ASYNC110 (likewise)
                        await trio.sleep(_CLOSE_POLL)
            self._scope.cancel()
            await self._ended.wait()

    # What a channel needs.

    @property
    def frame_max(self) -> int:
        """Bytes of the largest frame, as agreed with the broker."""
        assert self._connection is not None  # noqa: S101 (its channel is ready)
        return int(self._connection.params.frame_max)

    def open_channel(
        self, number: int, opened: Callable[[pika.channel.Channel], None]
    ) -> pika.channel.Channel | None:
        """Open a channel; None where there is no connection to open it on."""
        if self._connection is None or not self._connection.is_open:
            return None
        return self._connection.channel(number, opened)

    # pika has no public way to write several frames in one go, or to see how much it has yet to write: to
    # do without would take twice the time, and memory without a bound where the broker stops reading.

    def has_room(self) -> bool:
        """Whether more may be written, or there is enough that the broker has not read yet."""
        connection = self._connection
        return connection is not None and connection._get_write_buffer_size() < _WRITTEN_AHEAD  # noqa: SLF001

    def write(self, data: memoryview) -> None:
        """Write whole frames, as far as the system takes them at once, and read what there is."""
        assert self._connection is not None  # noqa: S101 (it has room)
        self._connection._output_marshaled_frames([data])  # noqa: SLF001
        self._loop.poll()

    def channel_ready(self) -> None:
        """A channel can publish from now on."""
        self._changed.set()

    def pump_soon(self) -> None:
        """Have every channel publish what it has, in a later turn of the loop."""
        self._filled.set()

    # The tasks.

    async def _main(self) -> None:
        try:
            with self._scope, quiet():
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._read)
                    nursery.start_soon(self._run_timers)
                    nursery.start_soon(self._write)
                    nursery.start_soon(self._expire)
                    await self._keep_connected()
        except Exception:  # noqa: BLE001 (a system task that fails would take the whole program with it)
            logger.exception("the connection to RabbitMQ has failed for good: this is a bug")
        finally:
            self._end()

    async def _read(self) -> None:
        descriptor = self._loop.fileno()
        while True:
            await trio.lowlevel.wait_readable(descriptor)
            self._guard(self._loop.turn)

    async def _run_timers(self) -> None:
        while True:
            await self._loop.wait_for_timer()
            self._guard(self._loop.turn)

    async def _write(self) -> None:
        while True:
            await self._filled.wait()
            self._filled = trio.Event()  # before anything is taken
            self._guard(self._pump)
            while any(channel.ready and channel.outbox for channel in self._channels):
                await trio.sleep(_ROOM_POLL)
                self._guard(self._pump)

    def _pump(self) -> None:
        for channel in self._channels:
            if self._blocked is None:
                channel.pump()
            else:
                channel.fail_unsent(self._throttled)

    async def _expire(self) -> None:
        """One timer for all: for what has waited for longest."""
        while True:
            deadlines = [channel.next_deadline() for channel in self._channels]
            # What comes in meanwhile is not due before that.
            await trio.sleep_until(min(self.deadline(), *deadlines))
            for channel in self._channels:
                channel.expire(trio.current_time(), self._unsent, self._unconfirmed)

    async def _keep_connected(self) -> None:
        backoff = Backoff()
        while True:
            try:
                await self._connect()
            except (OSError, UnicodeError) as error:  # UnicodeError is what a host name is that is none
                self._trouble = amqp_errors.reason(error)
                if not self._opened.is_set():
                    self._failed = self._not_connected()
                    self._opened.set()
                    return
            else:
                backoff.reset()
                self._opened.set()
                while self._connection is not None:
                    self._changed = trio.Event()
                    await self._changed.wait()
            logger.debug("%s:%d: %s", self._node.host, self._node.port, self._trouble)
            await trio.sleep(backoff.next())

    async def _connect(self) -> None:
        """Make a connection that a channel is ready on. Raises `OSError` where none comes about."""
        node = self._node
        with trio.move_on_after(node.connect_timeout):
            for *_, address in await trio.socket.getaddrinfo(node.host, node.port, type=socket.SOCK_STREAM):
                self._changed = trio.Event()
                self._guard(partial(self._begin_connecting, str(address[0])))
                await self._changed.wait()
                if self._connection is not None:
                    return
            raise ConnectionError(self._trouble)
        error = TimeoutError(f"no answer within {node.connect_timeout:g} s")
        self._abandon(error)
        raise error

    def _begin_connecting(self, address: str) -> None:
        self._connection = SelectConnection(
            self._node.parameters(address, self._name),
            on_open_callback=self._on_open,
            on_open_error_callback=self._on_lost,
            on_close_callback=self._on_lost,
            custom_ioloop=self._loop,
        )
        self._loop.turn()

    def _on_open(self, connection: SelectConnection) -> None:
        connection.add_on_connection_blocked_callback(self._on_blocked)
        connection.add_on_connection_unblocked_callback(self._on_unblocked)
        self._at_once.open()

    def _on_lost(self, connection: SelectConnection, error: BaseException) -> None:
        """A connection has come to its end, or has not come about."""
        if connection is not self._connection:
            return
        self._trouble = amqp_errors.reason(error)
        self._connection = None
        self._blocked = None
        for channel in self._channels:
            channel.lost(error)
        self._changed.set()

    def _on_blocked(self, _: SelectConnection, blocked: frame.Method) -> None:
        self._blocked = str(blocked.method.reason)
        for channel in self._channels:
            channel.fail_unsent(self._throttled)

    def _on_unblocked(self, _: SelectConnection, __: frame.Method) -> None:
        self._blocked = None
        self.pump_soon()

    def _guard(self, call: Callable[[], object]) -> None:
        """Whatever pika raises here, a new connection is the way out of it."""
        try:
            call()
        except Exception as error:  # noqa: BLE001 (as it says)
            logger.debug("%s: %s", type(error).__name__, error, exc_info=True)
            self._trouble = amqp_errors.reason(error)
            self._abandon(error)

    def _abandon(self, error: Exception) -> None:
        """Cut the connection off, in whatever state it is: pika's own `close` asks the broker first."""
        connection = self._connection
        if connection is not None:
            with contextlib.suppress(Exception):  # it is no more, whatever that was
                connection._terminate_stream(error)  # noqa: SLF001
            for _ in range(_TURNS):
                with contextlib.suppress(Exception):
                    self._loop.turn()
                if self._connection is not connection:
                    break
            self._on_lost(connection, error)
        self._changed.set()

    def _end(self) -> None:
        self._closed = True
        self._abandon(_closed())
        for channel in self._channels:
            channel.fail_unsent(_closed)
            channel.fail_unconfirmed(_closed)
        self._loop.close()
        self._failed = self._failed or self._not_connected()
        self._opened.set()
        self._ended.set()

    # What is raised.

    def _not_connected(self) -> ConnectionError:
        return ConnectionError(
            f"no connection to RabbitMQ at {self._node.host}:{self._node.port}: {self._trouble}"
        )

    def _throttled(self) -> Exception:
        return amqp_errors.blocked(self._blocked or "")

    def _unsent(self) -> Exception:
        if not self._at_once.ready:
            return self._not_connected()
        return TimeoutError(f"RabbitMQ has read too little for {self._confirm_timeout:g} s")

    def _unconfirmed(self) -> Exception:
        late = f"not confirmed within {self._confirm_timeout:g} s"
        # Blocked, the broker will take it when it reads on. But a duplicate is better than to hear nothing of
        # the limit, and than to give up what is refused.
        if self._blocked is not None:
            return amqp_errors.blocked(f"{self._blocked}; {late}")
        return TimeoutError(f"RabbitMQ: {late}")


def _closed() -> ConnectionError:
    return ConnectionError("the connection to RabbitMQ is closed")
