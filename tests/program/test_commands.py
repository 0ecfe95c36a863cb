"""What the commands do alike, as programs: a full disk, a reader that leaves, a terminal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.kit.commands import FULL, at_a_keyboard, full_disk, on_a_terminal, shell, told
from tests.kit.journal_files import filled, held, made, record

PLAN = "plan --qps 100000 --delay 120 --instances 500 --message-bytes 500 --worker-qps 10"
TOLD = ["--help", "--version", "plan --help", "journal export --help", "completion bash"]
COMMANDS = [
    PLAN,
    f"{PLAN} --json",
    "bench --rate 1k --seconds 0.1 --delay 0 --warmup 0 --json",
    "journal show JOURNAL",
    "journal show --json JOURNAL",
    "journal export JOURNAL",
    "journal purge --dead --yes JOURNAL",
]


@pytest.fixture
def full(tmp_path: Path) -> Path:
    return filled(tmp_path / "journal")


def words(command: str, journal: Path) -> list[str]:
    return command.replace("JOURNAL", str(journal)).split()


def test_the_installed_command() -> None:
    """The numbers are on standard output, and what is wrong on standard error, in one line."""
    process = shell('"$@"', *PLAN.split(), "--json")
    assert (process.returncode, process.stderr) == (0, b"")
    assert json.loads(process.stdout)["capacity"] == 24_000
    process = shell('"$@"', *PLAN.split(), "--instances", "0")
    assert (process.returncode, process.stdout) == (2, b"")
    assert told(process) == ["Error: Invalid value for '--instances': must be at least 1, not 0"]


@FULL
@pytest.mark.parametrize("command", [*COMMANDS, *TOLD])
def test_a_full_disk(full: Path, command: str) -> None:
    """One line, and exit code 1."""
    process = shell('"$@" > /dev/full', *words(command, full))
    assert process.returncode == 1
    assert told(process) == ["Error: standard output can't be written to: No space left on device"]


@FULL
def test_a_full_disk_is_no_loss_to_the_demo() -> None:
    """Its exit code 1 would say that messages were lost."""
    process = shell('"$@" > /dev/full', "demo", "--seconds", "0.1", "--delay", "0.1", "--json")
    assert process.returncode == 2
    assert told(process) == ["Error: standard output can't be written to: No space left on device"]


@pytest.mark.parametrize("command", ["demo --seconds 0.1 -q", "compare --quick --only memory -q"])
def test_a_full_disk_for_temporary_files(tmp_path: Path, command: str) -> None:
    """One line that names the file, exit code 2, and no directory is left."""
    with full_disk(tmp_path / "full") as full:
        process = shell(f'TMPDIR="{full}" "$@"', *command.split())
        assert (process.returncode, process.stdout) == (2, b"")
        (line,) = told(process)
        assert line.startswith("Error: ")
        assert line.endswith("' can't be used: No space left on device")
        assert list(full.iterdir()) == []


@FULL
def test_a_comparison_that_can_not_be_told(tmp_path: Path) -> None:
    """It is made to its end, and one line says why nobody sees it; nothing is left behind."""
    options = "--quick --rate 200 --delay 100ms --seconds 0.3 --only memory -q"
    process = shell(f'TMPDIR="{tmp_path}" "$@" > /dev/full', "compare", *options.split())
    assert process.returncode == 1
    assert told(process) == ["Error: standard output can't be written to: No space left on device"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("command", "redirected"),
    [
        *((command, ">&-") for command in [*COMMANDS, *TOLD, "demo", "compare"]),
        *((command, redirected) for command in COMMANDS[-2:] for redirected in (">&- <&-", ">&- 2>&-")),
    ],
)
def test_a_standard_output_that_is_closed(full: Path, command: str, redirected: str) -> None:
    """Nothing is done where it could not be told, and no file of the journal is written to instead."""
    process = shell(f'"$@" {redirected}', *words(command, full))
    assert process.returncode == 2
    said = [] if "2>" in redirected else ["Error: standard output can't be written to: it is closed"]
    assert told(process) == said
    assert len(held(full)) == 7


def test_help_that_nobody_has_asked_for() -> None:
    """It goes to standard error, with the exit code of wrong options; standard output has no part in it."""
    process = shell('"$@" >&-')
    assert process.returncode == 2
    assert told(process)[0] == "Usage: localdelay [OPTIONS] COMMAND [ARGS]..."


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        (
            "journal purge --dead JOURNAL",
            1,
            "nothing was removed: nobody has answered, and --yes was not given",
        ),
        ("demo --input -", 2, "Invalid value for '--input': standard input can't be read: it is closed"),
        ("relay --to stdout: --delay 1", 2, "standard input can't be read: it is closed"),
    ],
)
def test_a_standard_input_that_is_closed(full: Path, command: str, code: int, said: str) -> None:
    """One line, and nothing is done."""
    process = shell('"$@" <&-', *words(command, full))
    assert (process.returncode, process.stdout) == (code, b"")
    assert told(process)[-1] == f"Error: {said}"
    assert len(held(full)) == 7


@pytest.mark.parametrize("command", [PLAN, f"{PLAN} --json"])
def test_a_reader_that_is_gone(command: str) -> None:
    """It has seen enough: that is all."""
    process = shell('{ sleep 0.2; "$@"; echo $? >&2; } | true', *command.split())
    assert process.stderr == b"1\n"


@pytest.mark.parametrize("args", ["show --messages", "show --json --messages", "export"])
def test_a_reader_that_leaves(tmp_path: Path, args: str) -> None:
    """Likewise in the middle of a great deal."""
    path = made(tmp_path / "j", *(record(key, payload=bytes(100)) for key in range(1, 20_001)))
    process = shell('{ "$@"; echo $? >&2; } | head -n 1', "journal", *args.split(), path)
    assert len(process.stdout.splitlines()) == 1
    assert process.stderr == b"1\n"


@pytest.mark.parametrize(
    ("args", "given", "shown_meanwhile", "last"),
    [
        ("bench --rate 1k --seconds 1 --delay 100ms --warmup 0", b"", " of 1.1 s  ", ""),
        ("relay --to stdout: --delay 1200ms", b"a\nb\n", "2 pending  next ", "2 lines to stdout: in "),
        ("demo --seconds 0.4 --delay 0.6", b"", "plain: 1,200 published  ", ""),
    ],
)
def test_one_live_line_on_a_terminal(args: str, given: bytes, shown_meanwhile: str, last: str) -> None:
    """It changes in place, no wider than the terminal, though standard output is none, and makes room."""
    shown, code = on_a_terminal(*args.split(), columns=50, given=given)
    assert code == 0
    *states, rest = shown.split("\x1b[K")
    assert rest.startswith(last)
    assert len(states) >= 3
    assert any(shown_meanwhile in state for state in states)
    assert all(state.lstrip("\n").startswith("\r") and len(state) <= 51 for state in states)


@pytest.mark.parametrize(
    ("args", "shown", "said", "code"),
    [
        ("bench --rate 1k --seconds 20", "put  ", "Stopped before anything was measured.\n", 130),
        ("demo", "published", "Stopped. No NATS server is left behind.\n", 130),
        ("relay --to stdout: --delay 0", "Ctrl-D ends them.", "0 lines to stdout: in ", 130),
        ("journal purge --all JOURNAL", "[y/N]: ", "Stopped by SIGINT: nothing was removed.\n", 130),
    ],
)
def test_ctrl_c_at_a_keyboard(full: Path, args: str, shown: str, said: str, code: int) -> None:
    """What the terminal shows of it gives way to the line that says what it came to; no traceback."""
    found, ended = at_a_keyboard(*words(args, full), shown=shown, keys=b"\x03")
    assert (ended, "Traceback" in found) == (code, False), found
    after = found.rpartition("^C")[2]
    assert after.rpartition("\x1b[K")[2].removeprefix("\x1b[1m").startswith(said), found
    assert after.startswith(("\r\x1b[K", "\n")), found
