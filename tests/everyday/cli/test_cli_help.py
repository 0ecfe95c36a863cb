"""What is the same for every command."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kit.commands import run


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("plan", "--qps --delay --instances --message-bytes --worker-qps --target-p99 --outage"),
        ("demo", "--rate --seconds --delay --input --metrics --json"),
        ("bench", "--to --rate --seconds --delay --size --workers --batch --warmup --hlog --plot --compare"),
        ("compare", "--rate --delay --size --seconds --shards --workers --redis --only --quick --plot"),
        ("relay", "--to --unsent --dead-letters --hand-back --strict --grace 143 jsonl"),
        ("journal", "show export purge 130"),
        ("journal show", "--messages --limit --json"),
        ("journal export", "--output --dead --dead-only"),
        ("journal purge", "--dead --id --all --yes"),
    ],
)
def test_help_fits_80_columns(command: str, words: str) -> None:
    """Every option and exit code is explained, and no line is longer than a terminal."""
    result = run(*command.split(), "--help")
    assert result.exit_code == 0
    assert max(map(len, result.stdout.splitlines())) <= 80
    for word in words.split():
        assert word in result.stdout


@pytest.mark.parametrize("command", ["", "journal"])
def test_what_a_command_does_is_said_whole(command: str) -> None:
    """Where it stands among others it is not cut off, in 80 columns."""
    assert "..." not in run(*command.split(), "--help").stdout.partition("Commands:")[2].partition("\n\n")[0]


@pytest.mark.parametrize("command", ["", "relay", "journal", "journal export", "demo", "check"])
@pytest.mark.parametrize("columns", [40, 53])
def test_help_fits_a_narrow_terminal(command: str, columns: int) -> None:
    """No word is cut in two, what stands in a column goes on in it, and nothing is missing of a command's."""
    args = [*command.split(), "--help"]
    lines = run(*args, COLUMNS=str(columns)).stdout.splitlines()
    assert max(map(len, lines)) < columns
    if "Commands:" not in lines:  # click shortens what they do
        missing = {*run(*args).stdout.split()} - {*" ".join(lines).split()}
        assert [word for word in missing if "-" not in word and len(word) < 36] == []
    if command == "relay" and columns == 40:
        at = lines.index("  --send-timeout DURATION")
        assert lines[at + 1] == "                How long a send may"
        at = lines.index("    2    wrong options, or the broker")
        assert lines[at + 1] == "         can't be reached; nothing was"


@pytest.mark.parametrize("command", ["", "plan", "relay", "journal show"])
def test_help_on_the_narrowest_terminal(command: str) -> None:
    """Nobody can read it, and it is no error."""
    result = run(*command.split(), "--help", COLUMNS="1")
    assert (result.exit_code, result.stderr) == (0, "")


PLAN = ["plan", "--delay", "2m", "--instances", "500", "--message-bytes", "500", "--worker-qps", "10"]


def test_options_come_from_the_environment_and_from_a_file(tmp_path: Path) -> None:
    """The command line goes before the environment, and that before the file, whatever way it is written."""
    file = tmp_path / "localdelay.toml"
    file.write_text(
        '[plan]\nqps = "1k"\ndelay = 120\nmessage-bytes = "500B"\nworker_qps = 10\ncsv = true\n'
        "[journal.show]\nmessages = true\n"
    )
    held = run("--config", file, "plan", "--instances", 1).output.splitlines()
    assert held[1] == "capacity,120000,121833"
    for environ in (
        {"LOCALDELAY_PLAN_QPS": "2k"},
        {"LOCALDELAY_PLAN_QPS": "3k", "LOCALDELAY_CONFIG": str(file)},
    ):
        given = ["plan", "--qps", "2k"] if len(environ) > 1 else ["--config", file, "plan"]
        assert run(*given, "--instances", 1, **environ).output.splitlines()[1] == "capacity,240000,242651"


def test_what_a_file_may_say(tmp_path: Path) -> None:
    """Flags, lists, numbers for texts, and the mark that some editors begin a file with."""
    file = tmp_path / "localdelay.toml"
    options = '[plan]\njson = false\ncsv = true\n[compare]\nonly = ["redis", 5]\n[demo]\ninput = 5\n'
    file.write_text(f"{options}[relay]\nstrict = false\nto = 7", encoding="utf-8-sig")
    assert run("--config", file, *PLAN, "--qps", "1k").output.startswith(",on average,")
    assert "'--only': '5' is not one of" in run("--config", file, "compare").stderr
    assert "'--to': must begin with one of kafka" in run("--config", file, "relay", "--delay", "1").stderr
    assert "'--input': '5': No such file" in run("--config", file, "demo").stderr
    file.write_text("[plan]\ncsv = true\njson = false\n")
    assert run("--config", file, *PLAN, "--qps", "1k").output.startswith(",on average,")


def test_the_relay_reads_its_url_from_the_environment() -> None:
    """`LOCALDELAY_TO` is for the relay alone: a benchmark must not flood what that is sent to."""
    result = run("relay", "--delay", "1", LOCALDELAY_TO="nowhere")
    assert (result.exit_code, result.stderr.partition(": must")[0]) == (2, "Error: Invalid value for '--to'")
    assert run("bench", "--rate", "0", LOCALDELAY_TO="nowhere").stderr.startswith(
        "Error: Invalid value for '--rate'"
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[plan]\nqqs = 1\n", "can't be used: plan has no option or command 'qqs'"),
        ("[plam]\nqps = 1\n", "can't be used: localdelay has no option or command 'plam'"),
        ("plan = 1\n", "can't be used: localdelay has no option or command 'plan'"),
        ("[plan\n", "can't be used: Expected ']'"),
        ("[plan]\nqps = " + "[" * 100_000, "can't be used: it is nested too deeply"),
        ("[plan]\njson = 5\n", "can't be used: 'json' of plan must be true or false"),
        ('[plan]\ncsv = "yes"\n', "can't be used: 'csv' of plan must be true or false"),
        ("[bench]\ncancellable = 1\n", "can't be used: 'cancellable' of bench must be true or false"),
        ("[relay]\nunsent = []\n", "can't be used: 'unsent' of relay must be a text or a number"),
        ('[relay]\nunsent = "a\\u0000b"\n', "can't be used: 'unsent' of relay must be a text or a number"),
        ("[relay]\nquiet = [1]\n", "can't be used: 'quiet' of relay must be true or false"),
        ("[relay]\nmetrics = [1]\n", "can't be used: 'metrics' of relay must be a text or a number"),
        ("[relay]\nworkers = true\n", "can't be used: 'workers' of relay must be a text or a number"),
        ("[plan]\ndelay = 12:00:00\n", "can't be used: 'delay' of plan must be a text or a number"),
        (
            '[compare]\nonly = "redis"\n',
            "can't be used: 'only' of compare must be a list of texts or numbers",
        ),
        ("[journal.purge]\nid = [[1]]\n", "can't be used: 'id' of purge must be a list of texts or numbers"),
        (None, "can't be read: No such file or directory"),
    ],
)
def test_a_file_that_can_not_be_used(content: str | None, said: str, tmp_path: Path) -> None:
    """One line that names the file and what is wrong."""
    file = tmp_path / "localdelay.toml"
    if content is not None:
        file.write_text(content)
    result = run("--config", file, *PLAN)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"Error: Invalid value for '--config': '{file}' {said}")
    assert result.stderr.count("\n") == 1


def test_ctrl_c_while_a_file_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends the command as it does later: with a line, and 130."""

    def interrupted(*_: object, **__: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "read_text", interrupted)  # as of a named pipe that nobody writes to
    result = run("--config", tmp_path / "pipe", *PLAN)
    assert (result.exit_code, result.stdout, result.stderr) == (130, "", "Stopped by SIGINT.\n")


def test_a_value_in_a_file_that_is_none_of_the_options(tmp_path: Path) -> None:
    """It is told as if it had been typed."""
    file = tmp_path / "localdelay.toml"
    file.write_text('[plan]\nqps = "many"\n')
    said = run("--config", file, *PLAN).stderr
    assert said == "Error: Invalid value for '--qps': 'many' is no number; write 500, 10k or 1.5M\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str) -> None:
    """A shell is given a program that asks the command what may follow."""
    assert "_LOCALDELAY_COMPLETE" in run("completion", shell).output
    asked = {
        "COMP_WORDS": "localdelay relay --dead",
        "COMP_CWORD": "2",
        "_LOCALDELAY_COMPLETE": "bash_complete",
    }
    assert run(**asked).output == "plain,--dead-letters\n"
