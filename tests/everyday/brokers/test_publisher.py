"""What all brokers share, with a driver that does what a test says, in virtual time."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from localdelay import DelayNotSupported, Message, PartialSendError, PermanentSendError, Throttled
from localdelay.brokers import ConnectionClosed, ConnectionLost
from localdelay.brokers.driver import Driver
from localdelay.brokers.outbox import Gauges, Outbox, Parcel
from localdelay.brokers.publisher import Publisher, open_publisher

CONFIRM = 10.0
CONNECT = 5.0


class FakeConnection:
    """Keeps what was written; the test settles it, and ends the connection by `end`."""

    def __init__(self, driver: FakeDriver) -> None:
        self.driver = driver
        self.ended = trio.Event()
        self.reason: Exception = ConnectionError("gone")
        self.refuses: Exception | None = None
        self.heard = -math.inf

    def write(self, parcels: Sequence[Parcel]) -> None:
        if self.refuses is not None:
            raise self.refuses
        self.driver.writes.append([parcel.content for parcel in parcels])
        self.driver.parcels += parcels
        for parcel in parcels:
            self.driver.written(parcel)

    async def lost(self) -> Exception:
        await self.ended.wait()
        return self.reason

    def end(self, reason: Exception | None = None) -> None:
        self.reason = reason or self.reason
        self.ended.set()


class FakeDriver(Driver):
    """Connects at once, unless `trouble` has something for it: an error, or how long it takes."""

    where = "fake at nowhere:1"
    native_delay = True
    most_under_way: ClassVar[int] = 4

    def __init__(self) -> None:
        self.trouble: list[Exception | float] = []
        self.attempts: list[float] = []
        self.connections: list[FakeConnection] = []
        self.writes: list[list[Any]] = []
        self.parcels: list[Parcel] = []
        self.written: Callable[[Parcel], None] = lambda parcel: None
        self.outbox: Outbox

    @property
    def connection(self) -> FakeConnection:
        return self.connections[-1]

    def encode(self, message: Message, delay: float | None, now: float) -> str:
        if message.id.startswith("bad"):
            raise PermanentSendError(message.id)
        message.id.encode()
        return message.id if delay is None else f"{message.id} in {delay:g}"

    @asynccontextmanager
    async def connect(self, outbox: Outbox) -> AsyncIterator[FakeConnection]:
        self.outbox = outbox
        self.attempts.append(trio.current_time())
        trouble = self.trouble.pop(0) if self.trouble else 0
        if isinstance(trouble, Exception):
            raise trouble
        await trio.sleep(trouble)
        self.connections.append(FakeConnection(self))
        yield self.connection

    def verdict(self, error: Exception) -> Exception:
        return Throttled("busy") if str(error) == "too many" else error

    def settle(self, *ids: str, error: Exception | None = None) -> None:
        for parcel in self.parcels:
            if parcel.content in ids:
                parcel.settle(error)


class Silent(FakeDriver):
    in_order = True


def message(id: str, size: int = 1) -> Message:
    return Message(id, bytes(size), trio.current_time())


@pytest.fixture
def driver() -> FakeDriver:
    return FakeDriver()


@pytest.fixture
async def broker(driver: FakeDriver) -> AsyncIterator[Publisher]:
    async with open_publisher(driver, confirm_timeout=CONFIRM, connect_timeout=CONNECT) as publisher:
        yield publisher


def confirm(parcel: Parcel) -> None:
    parcel.settle()


class Sends:
    """Sends that run, and what each has come to, with the time."""

    def __init__(self, nursery: trio.Nursery, broker: Publisher) -> None:
        self.nursery = nursery
        self.broker = broker
        self.began = trio.current_time()
        self.ended: dict[str, tuple[float, BaseException | None]] = {}

    async def begin(self, *ids: str, delay: float | None = None) -> None:
        for id in ids:
            self.nursery.start_soon(self._run, id, delay)
            await wait_all_tasks_blocked()

    async def _run(self, id: str, delay: float | None) -> None:
        error: BaseException | None = None
        try:
            if delay is None:
                await self.broker.send(message(id))
            else:
                await self.broker.publish_delayed(message(id), delay)
        except Exception as raised:  # noqa: BLE001 (what is tested)
            error = raised
        self.ended[id] = (trio.current_time() - self.began, error)

    def error(self, id: str) -> BaseException | None:
        return self.ended[id][1]


@pytest.fixture
async def sends(broker: Publisher) -> AsyncIterator[Sends]:
    async with trio.open_nursery() as nursery:
        yield Sends(nursery, broker)
        nursery.cancel_scope.cancel()


async def test_what_comes_in_one_turn_of_the_loop_goes_in_one_write(
    autojump_clock: MockClock, broker: Publisher, driver: FakeDriver
) -> None:
    """Whoever puts it, and however soon after what was written before."""
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            for id in ("a", "b", "c"):
                nursery.start_soon(broker.send, message(id))
            await wait_all_tasks_blocked()
            driver.settle("a", "b", "c")
            await wait_all_tasks_blocked()
    assert [len(write) for write in driver.writes] == [3, 3]
    assert broker.gauges() == Gauges(0, 0, 0)


async def test_no_more_is_under_way_than_may_be(broker: Publisher, driver: FakeDriver) -> None:
    """The rest of a batch is written as answers come, in its order."""
    driver.written = lambda parcel: None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(broker.send_batch, [message(f"{number}") for number in range(10)])
        await wait_all_tasks_blocked()
        assert driver.writes == [["0", "1", "2", "3"]]
        assert broker.gauges().waiting == 6
        for number in range(10):
            driver.settle(f"{number}")
            await wait_all_tasks_blocked()
    assert [id for write in driver.writes for id in write] == [f"{number}" for number in range(10)]


async def test_bytes_are_bounded_too_and_one_message_may_be_larger(
    autojump_clock: MockClock, driver: FakeDriver
) -> None:
    """What is larger than the bound goes alone."""
    driver.most_bytes_under_way = 1000  # type: ignore[misc]
    async with open_publisher(driver) as broker:
        with trio.move_on_after(0.1):
            await broker.send_batch([message("small"), message("large", 5000), message("next")])
        assert driver.writes == [["small", "large"]]


async def test_a_batch_names_what_failed(broker: Publisher, driver: FakeDriver) -> None:
    """What can't be written has failed, what is confirmed has not, and the error says which."""
    driver.written = lambda parcel: parcel.settle(ValueError("x") if parcel.content == "c" else None)
    with pytest.raises(PartialSendError) as raised:
        await broker.send_batch([message(id) for id in ("a", "bad", "c", "d")])
    assert raised.value.failed is not None
    assert {id: type(error) for id, error in raised.value.failed.items()} == {
        "bad": PermanentSendError,
        "c": ValueError,
    }
    assert driver.writes == [["a", "c", "d"]]
    with pytest.raises(TypeError, match="payload must be bytes, not str"):
        await broker.send_batch([message("e"), Message("f", "text", 0.0)])  # type: ignore[arg-type]
    assert len(driver.writes) == 1
    await broker.send_batch([])


async def test_each_is_timed_on_its_own(
    autojump_clock: MockClock, broker: Publisher, driver: FakeDriver, sends: Sends
) -> None:
    """Exactly after the time limit it has failed; the connection and the others stay."""
    await sends.begin("slow")
    await trio.sleep(4)
    await sends.begin("slower")
    await trio.sleep(7)
    driver.settle("slower")
    await wait_all_tasks_blocked()
    assert sends.ended["slow"][0] == pytest.approx(CONFIRM)
    assert isinstance(sends.error("slow"), TimeoutError)
    assert sends.ended["slower"] == (pytest.approx(11), None)
    driver.settle("slow")  # its answer, too late
    assert len(driver.connections) == 1
    assert broker.gauges().under_way == 0


async def test_in_order_silence_ends_the_connection(autojump_clock: MockClock) -> None:
    """Who answers one after the other is waited for; after ten seconds of silence all has failed."""
    driver = Silent()
    async with open_publisher(driver, confirm_timeout=CONFIRM) as broker, trio.open_nursery() as nursery:
        sends = Sends(nursery, broker)
        await sends.begin("a", "b", "c")
        for id in ("a", "b"):
            await trio.sleep(8)
            driver.connection.heard = trio.current_time()
            driver.settle(id)
        await trio.sleep(9.9)
        assert list(sends.ended) == ["a", "b"]
        await trio.sleep(0.2)
        assert sends.ended["c"][0] == pytest.approx(26)
        assert isinstance(sends.error("c"), TimeoutError)
        await trio.sleep(1)
        assert len(driver.connections) == 2


async def test_what_was_under_way_is_lost_and_what_waits_is_not(
    autojump_clock: MockClock, broker: Publisher, driver: FakeDriver, sends: Sends
) -> None:
    """ConnectionLost says that nobody knows; the rest goes to the next connection."""
    await sends.begin("a", "b", "c", "d", "e")
    driver.connection.end(OSError(104, "Connection reset by peer"))
    await wait_all_tasks_blocked()
    for id in ("a", "b", "c", "d"):
        error = sends.error(id)
        assert isinstance(error, ConnectionLost)
        assert str(error) == "the connection to fake at nowhere:1 was lost: Connection reset by peer"
        assert isinstance(error.__cause__, OSError)
    driver.written = confirm
    await trio.sleep(1)
    assert sends.error("e") is None
    assert driver.writes[-1] == ["e"]


async def test_what_was_not_written_goes_to_the_next_connection(
    autojump_clock: MockClock, broker: Publisher, driver: FakeDriver, sends: Sends
) -> None:
    """A driver that finds its connection gone when it writes says so, and nothing has failed."""
    driver.connection.refuses = ConnectionError("gone")
    await sends.begin("a", "b")
    driver.written = confirm
    await trio.sleep(1)
    assert sends.ended.keys() == {"a", "b"}
    assert sends.error("a") is sends.error("b") is None
    assert driver.writes == [["a", "b"]]


async def test_a_client_that_raises_costs_its_messages_only(
    autojump_clock: MockClock, broker: Publisher, driver: FakeDriver, sends: Sends
) -> None:
    """What it raises is what they fail with, and another connection is made, since this one may be broken."""
    driver.connection.refuses = RuntimeError("a bug of the client's")
    await sends.begin("a")
    driver.written = confirm
    await sends.begin("b")
    await trio.sleep(1)
    assert isinstance(sends.error("a"), RuntimeError)
    assert sends.error("b") is None
    assert len(driver.connections) == 2


async def test_it_connects_again_for_as_long_as_it_takes(
    autojump_clock: MockClock, broker: Publisher, driver: FakeDriver, sends: Sends
) -> None:
    """Attempts come at growing intervals of a second at most, one that hangs is given up, and sends wait."""
    driver.trouble = [math.inf, *[OSError(111, "Connection refused")] * 30]
    driver.connection.end()
    await trio.sleep(3)
    await sends.begin("too long")
    await trio.sleep(12)
    error = sends.error("too long")
    assert sends.ended["too long"][0] == pytest.approx(13)
    assert type(error) is ConnectionError
    assert str(error) == "no connection to fake at nowhere:1: Connection refused"
    gaps = [b - a for a, b in zip(driver.attempts[2:], driver.attempts[3:], strict=False)]
    assert driver.attempts[2] - driver.attempts[1] == pytest.approx(CONNECT, abs=0.2)
    assert max(gaps) <= 1
    assert min(gaps[5:]) >= 0.5
    await trio.sleep(60)
    driver.written = confirm
    await broker.send(message("last"))


async def test_a_connection_that_ends_at_once_is_no_busy_loop(
    autojump_clock: MockClock, broker: Publisher, driver: FakeDriver
) -> None:
    """The waits grow until one has held for a second."""
    for _ in range(1000):
        driver.connection.end()
        await wait_all_tasks_blocked()
        await trio.sleep(0.01)
    assert len(driver.attempts) < 30


async def test_who_lets_nobody_in_for_now_is_throttling(
    autojump_clock: MockClock, broker: Publisher, driver: FakeDriver, sends: Sends
) -> None:
    """What waits hears of it at once."""
    driver.trouble = [ConnectionError("too many")] * 3
    driver.connection.end()
    await wait_all_tasks_blocked()
    await sends.begin("waits")
    await trio.sleep(0.1)
    error = sends.error("waits")
    assert isinstance(error, Throttled)
    assert str(error) == "no connection to fake at nowhere:1: too many"


async def test_delayed_publishes_do_not_wait_for_a_connection(
    autojump_clock: MockClock, broker: Publisher, driver: FakeDriver, sends: Sends
) -> None:
    """Neither those that come while there is none, nor those that have waited for room."""
    driver.trouble = [OSError(111, "Connection refused")] * 9
    await sends.begin("a", "b", "c", "d", "e")
    await sends.begin("delayed", delay=3)
    driver.connection.end()
    await wait_all_tasks_blocked()
    await sends.begin("later", delay=3)
    for id in ("delayed", "later"):
        assert type(sends.error(id)) is ConnectionError
        assert sends.ended[id][0] == pytest.approx(0)
    assert "e" not in sends.ended


async def test_delays(broker: Publisher, driver: FakeDriver) -> None:
    """They are the driver's business, and refused by their name where they are none."""
    driver.written = confirm
    await broker.publish_delayed(message("a"), 3)
    assert driver.writes == [["a in 3"]]
    for delay in (-1, math.nan, math.inf):
        with pytest.raises(ValueError, match="delay"):
            await broker.publish_delayed(message("b"), delay)
    driver.native_delay = False
    with pytest.raises(DelayNotSupported, match="fake at nowhere:1: it has no delay of its own"):
        await broker.publish_delayed(message("b"), 3)


async def test_what_was_refused_in_company_is_written_alone(
    broker: Publisher, driver: FakeDriver, sends: Sends
) -> None:
    """First, one after the other, with nothing else under way; what comes meanwhile waits."""
    await sends.begin("a", "b", "c")
    first = list(driver.parcels)
    driver.outbox.again(first, alone=True)
    await sends.begin("d")
    assert driver.writes[-1] == ["a"]
    for id in ("a", "b", "c", "d"):
        assert driver.writes[-1] == [id]
        driver.settle(id, error=PermanentSendError(id) if id == "b" else None)
        await wait_all_tasks_blocked()
    assert [sends.error(id) is None for id in ("a", "b", "c", "d")] == [True, False, True, True]


async def test_what_is_to_go_alone_waits_without_work(
    autojump_clock: MockClock, broker: Publisher, driver: FakeDriver, sends: Sends
) -> None:
    """While others are under way nothing is written, and the loop stands still."""
    await sends.begin("a", "b")
    driver.outbox.again(driver.parcels[:1], alone=True)
    await trio.sleep(1)  # for ever, where the loop goes round and round
    assert driver.writes == [["a"], ["b"]]
    driver.settle("b")
    await wait_all_tasks_blocked()
    assert driver.writes[2:] == [["a"]]


async def test_a_cancelled_send_is_not_written_any_more(
    autojump_clock: MockClock, broker: Publisher, driver: FakeDriver, sends: Sends
) -> None:
    """What waits is forgotten; what is under way still counts until it is answered."""
    with trio.move_on_after(1):
        await broker.send_batch([message(f"{number}") for number in range(9)])
    assert broker.gauges() == Gauges(0, 4, broker.gauges().bytes_under_way)
    driver.outbox.again(driver.parcels[:2])
    assert broker.gauges().under_way == 2
    driver.settle("2", "3")
    assert broker.gauges() == Gauges(0, 0, 0)
    assert driver.writes == [["0", "1", "2", "3"]]


async def test_any_thread_may_settle(broker: Publisher, driver: FakeDriver) -> None:
    """Its task goes on in the next turn of the loop."""

    async def settle() -> None:
        await wait_all_tasks_blocked()
        await trio.to_thread.run_sync(lambda: driver.outbox.settle_soon(driver.parcels[0]))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(settle)
        await broker.send(message("a"))


async def test_leaving_the_block_ends_what_is_on_its_way(driver: FakeDriver) -> None:
    """Written or not, it fails with ConnectionClosed, and so does what comes later."""
    ended: list[type[BaseException]] = []

    async def send(broker: Publisher, number: int) -> None:
        with pytest.raises(ConnectionClosed) as raised:
            await broker.send(message(f"{number}"))
        ended.append(raised.type)

    async with trio.open_nursery() as nursery:
        async with open_publisher(driver) as broker:
            for number in range(9):
                nursery.start_soon(send, broker, number)
            await wait_all_tasks_blocked()
    assert ended == [ConnectionClosed] * 9
    for late in (broker.send(message("x")), broker.send_batch([]), broker.publish_delayed(message("x"), 1)):
        with pytest.raises(ConnectionClosed, match="the connection to fake at nowhere:1 is closed"):
            await late
    assert broker.gauges() == Gauges(0, 0, 0)


@pytest.mark.parametrize(
    ("trouble", "says"),
    [
        (OSError(111, "Connection refused"), "Connection refused"),
        (ConnectionError("it says\nnothing"), "it says nothing"),
        (UnicodeError("label too long"), "that is no host's name"),
        (math.inf, "no answer within 5 s"),
    ],
)
async def test_where_there_is_none_to_begin_with(
    driver: FakeDriver, autojump_clock: MockClock, trouble: Exception | float, says: str
) -> None:
    """The block is not entered: a ConnectionError of one line."""
    driver.trouble = [trouble]
    with pytest.raises(ConnectionError) as raised:
        async with open_publisher(driver):
            pytest.fail("no connection")
    assert str(raised.value) == f"no connection to fake at nowhere:1: {says}"


async def test_text_that_is_no_unicode_is_permanent(driver: FakeDriver, broker: Publisher) -> None:
    """Whatever a driver does to encode it; without a cause, which would show what could not be encoded."""
    driver.written = confirm
    with pytest.raises(PermanentSendError, match="Unicode") as raised:
        await broker.send(message("\ud800"))
    assert raised.value.__cause__ is None
    with pytest.raises(PartialSendError) as partial:
        await broker.send_batch([message("\ud800"), message("good")])
    assert partial.value.failed is not None
    assert {id: type(error) for id, error in partial.value.failed.items()} == {"\ud800": PermanentSendError}
    assert driver.writes == [["good"]]


@pytest.mark.parametrize("name", ["confirm_timeout", "connect_timeout"])
@pytest.mark.parametrize(("value", "error"), [(0, ValueError), (math.nan, ValueError), ("1", TypeError)])
async def test_time_limits_are_checked(
    driver: FakeDriver, name: str, value: object, error: type[Exception]
) -> None:
    """By their names, before anything is connected."""
    with pytest.raises(error, match=name):
        async with open_publisher(driver, **{name: value}):  # type: ignore[arg-type]
            pass
    assert not driver.attempts
