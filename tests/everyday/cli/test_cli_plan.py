"""`localdelay plan`: what it prints, and how it refuses."""

from __future__ import annotations

import json

import attrs
import click
import pytest
from click.testing import Result

from localdelay.capacity import plan_capacity
from tests.kit import commands
from tests.kit.commands import on_a_terminal

FIGURES = {
    "--qps": "100000",
    "--delay": "120",
    "--instances": "500",
    "--message-bytes": "500",
    "--worker-qps": "10",
}
EXAMPLE = [word for option in FIGURES.items() for word in option]


def run(*args: str) -> Result:
    return commands.run("plan", *args)


def test_json_is_the_plan_and_nothing_else() -> None:
    """One object with the pinned keys, in their order, and whole numbers as integers."""
    result = run(*EXAMPLE, "--json")
    assert result.exit_code == 0
    assert json.loads(result.output) == {
        "cluster_backlog": 12_000_000,
        "cluster_bytes": 6_000_000_000,
        "rate_per_instance": 200,
        "capacity": 24_000,
        "payload_bytes": 12_000_000,
        "resident_bytes": plan_capacity(
            qps=100_000, delay=120, instances=500, message_bytes=500, worker_qps=10
        ).resident_bytes,
        "workers": 20,
        "utilisation": 1,
        "target_p99": 0.1,
        "workers_for_target": 24,
        "capacity_for_target": 24_795,
        "redis": {
            "keys": 3_000,
            "elements_per_key": 4_000,
            "zadd_per_s": 100_000,
            "zrange_per_s": 15_000,
            "setnx_per_s": 7_500_000,
            "reads_per_s": 7_515_000,
            "writes_per_s": 200_000,
            "memory_bytes": 9_000_000_000,
        },
        "redis_queue": {
            "shards": 3_000,
            "commands_per_s": pytest.approx(41_305.2, abs=0.1),
            "idle_commands_per_s": 800,
            "memory_bytes": 10_080_000_000,
        },
    }
    assert " ".join(json.loads(result.output)) == (
        "cluster_backlog cluster_bytes rate_per_instance capacity payload_bytes resident_bytes workers"
        " utilisation target_p99 workers_for_target capacity_for_target redis redis_queue"
    )
    assert ".0" not in result.output


def test_the_plan_fits_a_small_terminal_with_every_number_in_sight() -> None:
    """80 by 24 with two lines for the command and one for the prompt; plain ASCII, no escape codes."""
    result = run(*EXAMPLE)
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert len(lines) <= 21
    assert max(map(len, lines)) <= 80
    assert result.output.isascii()
    assert "\x1b" not in result.output
    assert all(line == line.rstrip() for line in lines)
    for text in (
        "In all 12,000,000 messages, 6,000,000,000 bytes (6 GB)",
        "200 messages/s",
        "24,000          24,795  messages",
        "12,000,000      12,397,500  bytes",
        "20              24  at 10 sends/s each",
        "100 %          83.3 %  of the workers' time",
        "without bound         84.9 ms",
        "24,000 is what waits on average, and full at the first late send: give it a\ncapacity of 24,795.",
        "20 workers at 100 %: lateness grows without bound; give it 24 workers.",
        "3,000  of up to 4,000 elements",
        "7,515,000/s  zrange 15,000/s + setnx 7,500,000/s",
        "200,000/s  zadd 100,000/s + zrem 100,000/s",
        "9 GB  in Redis",
        "41,300/s  localdelay.redis_plan, idle 800/s; 10.1 GB",
    ):
        assert text in result.output


def test_a_pool_that_is_stable_but_late_is_pointed_out() -> None:
    """195/s on 20 workers is no 100 %, but p99 lateness is over a target of 10 ms."""
    output = run(*EXAMPLE, "--qps", "97500", "--target-p99", "10ms").output
    assert "97.5 %" in output
    assert "With 20 workers p99 lateness is 894 ms, over the target; give it 30 workers." in output
    assert "without bound" not in output


def test_a_pool_that_keeps_to_the_target_is_left_alone() -> None:
    """Nothing is said of workers where the average is enough, and one worker is not "1 workers"."""
    output = run(*EXAMPLE, "--degraded-share", "0.0003").output
    assert "0.03 % of 100,000 messages/s" in output
    assert "workers." not in output
    output = run(*EXAMPLE, "--qps", "10", "--instances", "1").output
    assert "by 1 instance\n" in output
    assert "1 worker at 100 %" in output


def test_nearly_all_is_not_all() -> None:
    """99.99 % is never rounded to the 100 % that means something else."""
    output = run(*EXAMPLE, "--qps", "99990").output
    assert "99.9 %" in output
    assert "100 %" not in output


@pytest.mark.parametrize(
    ("options", "arguments"),
    [
        ("--delay 2m", {}),
        ("--delay 120s --message-bytes 500B", {}),
        ("--qps 1e5 --message-bytes 0.5kB", {}),
        ("--target-p99 10ms", {"target_p99": 0.01}),
        ("--degraded-share 0.3", {"degraded_share": 0.3}),
        ("--degraded-share 30%", {"degraded_share": 0.3}),
        ("--qps 100k", {}),
        ("--outage 5m", {"outage": 300}),
        ("--quota 125000 --delayed-cost 5", {"quota": 125_000, "delayed_cost": 5}),
    ],
)
def test_options_reach_the_plan(options: str, arguments: dict[str, float]) -> None:
    """What the library works out for the same figures is what the command prints, however they are typed."""
    result = run(*EXAMPLE, *options.split(), "--json")
    figures = {"qps": 100_000, "delay": 120, "instances": 500, "message_bytes": 500, "worker_qps": 10}
    expected = attrs.asdict(plan_capacity(**{**figures, **arguments}))  # type: ignore[arg-type]
    assert json.loads(result.output) == {name: value for name, value in expected.items() if value is not None}


def test_a_worker_is_told_by_its_speed_or_by_the_time_of_a_send() -> None:
    """By one of them: 100 ms a send are 10 sends/s."""
    by_time = [*EXAMPLE[:-2], "--send-time", "100ms"]
    assert run(*by_time).output == run(*EXAMPLE).output
    for args, said in (
        (EXAMPLE[:-2], "Error: exactly one of --worker-qps and --send-time must be given"),
        ([*EXAMPLE, "--send-time", "1s"], "Error: exactly one of --worker-qps and --send-time must be given"),
        (
            [*EXAMPLE[:-2], "--send-time", "0"],
            "Error: Invalid value for '--send-time': must be finite and at least 1e-09, not 0.0",
        ),
    ):
        result = run(*args)
        assert (result.exit_code, result.stderr.splitlines()[0].partition(". See")[0]) == (2, said)


def test_the_table_as_csv() -> None:
    """Plain numbers, in seconds, bytes and parts of one."""
    assert run(*EXAMPLE, "--csv").output.splitlines() == [
        ",on average,for the target",
        "capacity,24000,24795",
        "payload,12000000,12397500",
        "memory,14232000,14703435",
        "workers,20,24",
        "utilisation,1.0,0.8333333333333334",
        "lateness p99,inf,0.08486877452106217",
    ]


def test_on_a_narrow_terminal_a_row_has_lines_of_its_own() -> None:
    """At 40 columns nothing is wider, and no figure is missing."""
    shown, code = on_a_terminal("plan", *EXAMPLE, stream="stdout", columns=40)
    lines = [click.unstyle(line) for line in shown.splitlines()]
    assert code == 0
    assert max(map(len, lines)) < 40
    at = lines.index("workers, at 10 sends/s each")
    assert lines[at + 1 : at + 3] == ["  on average      20", "  for the target  24"]
    assert "memory: 9 GB in Redis" in lines
    at = lines.index("reads: 7,515,000/s zrange 15,000/s +")
    assert lines[at + 1] == "  setnx 7,500,000/s"
    shown, _ = on_a_terminal("plan", *EXAMPLE, "--quota", "20k", stream="stdout", columns=40)
    assert "\n  natively 20,000/s, held 80,000/s; 0/s\n  and 100,000/s" in click.unstyle(shown)


def test_help_is_not_taken_for_an_error() -> None:
    """The bare command and `--help` print help, with an example that works as it stands."""
    assert commands.run().output.startswith("Usage: ")
    result = run("--help")
    assert result.exit_code == 0
    example = result.output.partition("Example:")[2].replace("\\\n", "").split()
    assert example[:2] == ["localdelay", "plan"]
    assert run(*example[2:]).output == run(*EXAMPLE).output


def test_a_quota_is_told_in_three_lines() -> None:
    """What passes and what is held, at first and later, and how much the same quota carries."""
    quota = ("--quota", "1000", "--delayed-cost", "5", "--instances", "1")
    lines = run(*EXAMPLE, *quota, "--qps", "500").output.splitlines()
    assert lines[:4] == [
        "Of a quota of 1,000 calls/s, of which a delayed publish counts as 5",
        "  natively 200/s, held 300/s; 125/s and 375/s once that comes due",
        "  held and sent when due, the quota carries 1,000/s: 5 times as much",
        "Held here: 75 % of 500 messages/s of 500 bytes for 120 s, by 1 instance",
    ]
    assert max(map(len, lines)) <= 79
    assert "leaves when the peak is over" in run(*EXAMPLE, *quota, "--qps", "1001").output
    assert len(run(*EXAMPLE, *quota, "--qps", "200").output.splitlines()) == 3
