"""Servers that Debian has no package of: brought once, by the clients of Go and Maven, into a cache.

`python -m tests.kit.servers.artifacts` brings all of them, in half a minute each; a test that needs one
does so, too. The cache is `localdelay-tests` in `$XDG_CACHE_HOME` or `~/.cache`, and may be removed.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

import attrs

from tests.kit.servers.process import NotInstalled, program

_TIMEOUT = 600.0
# What NSQ's own go.mod replaces must be replaced here too: a dependency's replacements do not count.
_GO_MOD = """\
module servers

go 1.17

require github.com/nsqio/nsq v1.3.0

replace github.com/judwhite/go-svc => github.com/mreiferson/go-svc v1.2.2-0.20210815184239-7a96e00010f6
"""
_POM = """\
<project>
  <modelVersion>4.0.0</modelVersion>
  <groupId>localdelay</groupId><artifactId>servers</artifactId><version>1</version><packaging>pom</packaging>
  <dependencies>{}</dependencies>
</project>
"""


@attrs.frozen
class Artifact:
    """What one server is made of, and the command that brings it."""

    files: Mapping[str, str]
    """What the command finds in its directory."""
    command: tuple[str, ...]
    needs: Mapping[str, str]
    """The programs that this takes, and the Debian package of each."""

    def directory(self, name: str) -> Path:
        """Where it lies once it is there; another recipe has another directory."""
        recipe = hashlib.sha256(repr((sorted(self.files.items()), self.command)).encode()).hexdigest()[:12]
        return _cache() / f"{name}-{recipe}"


def _jars(*coordinates: str) -> Artifact:
    dependencies = "".join(
        "<dependency><groupId>{}</groupId><artifactId>{}</artifactId><version>{}</version></dependency>".format(
            *coordinate.split(":")
        )
        for coordinate in coordinates
    )
    command = ("mvn", "--quiet", "--batch-mode", "dependency:copy-dependencies", "-DoutputDirectory=lib")
    java = {"java": "default-jre-headless", "mvn": "maven"}
    return Artifact({"pom.xml": _POM.format(dependencies)}, command, java)


ARTIFACTS: Mapping[str, Artifact] = {
    "nsq": Artifact(
        {"go.mod": _GO_MOD},
        ("go", "build", "-mod=mod", "-o", "nsqd", "github.com/nsqio/nsq/apps/nsqd"),
        {"go": "golang-go"},
    ),
    "kafka": _jars(
        "org.apache.kafka:kafka_2.13:4.4.0",
        "org.apache.kafka:kafka-tools:4.4.0",  # quotas
        "org.apache.logging.log4j:log4j-slf4j-impl:2.25.1",
    ),
    "rocketmq": _jars(
        *(f"org.apache.rocketmq:rocketmq-{part}:5.5.0" for part in ("namesrv", "broker", "proxy", "tools"))
    ),
}


def bring(name: str) -> Path:
    """The directory of this server's files; they are brought where they are not there yet.

    Raises `NotInstalled` with what to install, or with what the client said that could not bring them.
    """
    artifact = ARTIFACTS[name]
    for needed, package in artifact.needs.items():
        program(needed, package)
    directory = artifact.directory(name)
    directory.parent.mkdir(parents=True, exist_ok=True)
    with (directory.parent / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several workers may want it at the same time
        if not directory.exists():
            _bring(name, artifact, directory)
    return directory


def _bring(name: str, artifact: Artifact, directory: Path) -> None:
    """Under another name until it is whole: whatever ends this leaves nothing that looks like it."""
    part = Path(tempfile.mkdtemp(dir=directory.parent, prefix=f"{name}-part-"))
    try:
        for file, text in artifact.files.items():
            (part / file).write_text(text)
        done = subprocess.run(
            artifact.command, cwd=part, capture_output=True, text=True, timeout=_TIMEOUT, check=False
        )
        if done.returncode:
            said = (done.stderr or done.stdout).strip().splitlines()
            raise NotInstalled(f"{name} can't be brought: {artifact.command[0]} says: {' '.join(said[-3:])}")
        part.rename(directory)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "localdelay-tests"


if __name__ == "__main__":
    for each in ARTIFACTS:
        print(each, "is at", bring(each))
