"""What the commands refuse: in one line that names the option, with exit code 2, before anything is begun."""

from __future__ import annotations

import pytest

from tests.kit.commands import run

PLAN = "plan --qps 100000 --delay 120 --instances 500 --message-bytes 500 --worker-qps 10"
RELAY = "relay --to stdout: --delay 1"


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("bench --rate 0", "'--rate': must be over 0 and at most 100,000,000 a second, not 0"),
        ("bench --rate 1k..", "'--rate': '' is no number; write 500, 10k or 1.5M"),
        ("bench --rate 1..200M", "'--rate': must be over 0 and at most"),
        ("bench --seconds 0", "'--seconds': must be finite and at least 0.001"),
        ("bench --seconds 2d", "'--seconds': must be at most 86,400, not 172,800"),
        ("bench --delay=-1", "'--delay': a duration can't be negative"),
        ("bench --delay 1s,", "'--delay': '' is no duration"),
        ("bench --delay 1s..soon", "'--delay': 'soon' is no duration"),
        ("bench --delay 5s..1s", "'--delay': must be a range from the shorter to the longer"),
        ("bench --delay 2d", "'--delay': must be at most 86,400 seconds"),
        ("bench --size 7", "'--size': must be finite and at least 8"),
        ("bench --size big", "'--size': 'big' is no size"),
        ("bench --workers 0", "'--workers': must be finite and at least 1"),
        ("bench --batch 0", "'--batch': must be finite and at least 1"),
        ("bench --warmup=-1", "'--warmup': a duration can't be negative"),
        ("bench --seed x", "'--seed': 'x' is no number"),
        ("bench --timer sundial", "'--timer': 'sundial' is not one of"),
        ("bench --to stdout:", "'--to': must be a broker: standard output is for the report"),
        ("bench --to mqtt://host/topic", "'--to': must begin with one of kafka://"),
        ("bench --to nats://user:hunter2@host", "'--to': must end with the subject to publish to"),
        ("bench --to nats://127.0.0.1:1/orders", "no connection to NATS at"),
        ("bench --hlog /no/such/run.hlog", "'--hlog': '/no/such/run.hlog' is no file in a directory"),
        ("bench --plot run.jpeg", "'--plot': 'run.jpeg' must end in .svg or .png"),
        ("bench --plot /no/such/run.svg", "'--plot': '/no/such/run.svg' is no file"),
        ("bench --compare /no/such", "'--compare': '/no/such' can't be read: No such file"),
        ("bench --compare /dev/zero", "'--compare': '/dev/zero' can't be used: it is no regular file"),
        (f"bench --compare {__file__}", "can't be used: it is no log of localdelay bench"),
        ("bench --rate 1M --delay 1d --seconds 1d", "'--delay': is too long for this rate and size"),
        ("compare --rate 0", "'--rate': must be finite and at least 1, not 0.0"),
        ("compare --rate 1k..2k", "'--rate': '1k..2k' is no number"),
        ("compare --delay 20m", "'--delay': must be at most 600, not 1,200"),
        ("compare --redis http://host", "'--redis': must be a server, like redis://host:6379"),
        ("compare --plot x.gif", "'--plot': 'x.gif' must end in .svg or .png"),
        ("compare --only kafka", "'--only': 'kafka' is not one of"),
        ("demo --rate 0", "'--rate': must be a finite number over 0, not 0"),
        ("demo --seconds 0", "'--seconds': must be a finite number over 0, not 0"),
        ("demo --seconds 1e300", "'--seconds': must be 333.333 at most at this rate"),
        ("demo --delay 0", "'--delay': must be a finite number over 0 and at most 3600, not 0"),
        ("demo --delay 61m", "'--delay': must be a finite number over 0 and at most 3600, not 3660"),
        ("demo --input /no/such", "'--input': '/no/such': No such file"),
        ("demo --input /dev/null", "'--input': has no lines"),
        ("demo --input", "'--input' requires an argument"),
        (f"{PLAN} --instances 0", "'--instances': must be at least 1, not 0"),
        (f"{PLAN} --instances 1.5", "'--instances': '1.5' is no whole number"),
        (f"{PLAN} --qps 0", "'--qps': must be more than 0, not 0.0"),
        (f"{PLAN} --qps many", "'--qps': 'many' is no number; write 500, 10k or 1.5M"),
        (f"{PLAN} --qps 1e16", "'--qps': must be at most 1,000,000,000,000,000"),
        (f"{PLAN} --delay 0s", "'--delay': must be more than 0, not 0.0"),
        (f"{PLAN} --message-bytes 0", "'--message-bytes': must be at least 1, not 0"),
        (f"{PLAN} --message-bytes 12M", "'--message-bytes': '12M' is no size; write 500, 500B, 12kB"),
        (f"{PLAN} --worker-qps 0", "'--worker-qps': must be more than 0, not 0.0"),
        (f"{PLAN} --worker-qps 1e-9", "is too small: an instance would need more than 100,000,000 workers"),
        (f"{PLAN} --target-p99 0", "'--target-p99': must be more than 0, not 0.0"),
        (f"{PLAN} --degraded-share 0", "'--degraded-share': must be more than 0, not 0.0"),
        (f"{PLAN} --degraded-share 1.5", "'--degraded-share': must be at most 1"),
        (f"{PLAN} --degraded-share nan", "'--degraded-share': 'nan' is no share; write 30% or 0.3"),
        (f"{PLAN} --outage=-5", "'--outage': a duration can't be negative, as '-5' is"),
        (f"{PLAN} --degraded-share 1e999", "'--degraded-share': '1e999' is too large a share"),
        (f"{PLAN} --delayed-cost 5", "--delayed-cost is for --quota. See 'localdelay plan --help'."),
        ("plan --qps 1", "Missing option '--delay'. See 'localdelay plan --help'."),
        ("plan --qps", "'--qps' requires an argument"),
        ("plan --qqps 1", "No such option '--qqps'"),
        ("relay", "Missing option '--to'"),
        ("relay --to stdout:", "'--delay': must be given for text"),
        ("relay --forma x", "Did you mean '--format'?"),
        ("relay --to nowhere --delay 1", "'--to': must begin with one of kafka://"),
        ("relay --to stdout --delay 1", "did you mean stdout:"),
        ("relay --to nats://host:99999/orders --delay 1", "'--to': must have a port from 1 to 65535"),
        ("relay --to nats://user:hunter2@host --delay 1", "'--to': must end with the subject"),
        (f"{RELAY} --format csv", "'--format': 'csv' is not one of 'text', 'jsonl'"),
        (f"{RELAY} --workers 0", "'--workers': must be at least 1, not 0"),
        (f"{RELAY} --batch 0", "'--batch': must be at least 1, not 0"),
        (f"{RELAY} --capacity 0", "'--capacity': must be at least 1, not 0"),
        (f"{RELAY} --capacity-bytes 0", "'--capacity-bytes': must be at least 1"),
        (f"{RELAY} --max-line 0", "'--max-line': must be at least 1, not 0"),
        (f"{RELAY} --attempts 0", "'--attempts': must be at least 1, not 0"),
        (f"{RELAY} --send-timeout 0", "'--send-timeout': must be more than 0"),
        (f"{RELAY} --grace=-5", "'--grace': a duration can't be negative"),
        (f"{RELAY} --unsent /no/such", "'--unsent': '/no/such' is no file in"),
        (f"{RELAY} --dead-letters /", "'--dead-letters': '/' is no file in"),
        (f"{RELAY} --metrics 65536", "'--metrics': '65536' is no port: write a number"),
        (f"{RELAY} file", "unexpected extra argument (file)"),
        ("plam", "Did you mean 'plan'?"),
        ("--verbos", "No such option '--verbos'"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(command: str, said: str) -> None:
    """Whichever of the parser and the library refuses it, and without a password."""
    result = run(*command.split())
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert result.stderr.startswith("Error: ")
    assert said in result.stderr
    assert "hunter2" not in result.stderr
