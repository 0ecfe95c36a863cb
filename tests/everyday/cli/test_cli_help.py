"""What is the same for every command."""

from __future__ import annotations

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
