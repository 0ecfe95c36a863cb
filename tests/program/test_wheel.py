"""The wheel that users install: built, installed without extras into a fresh environment, and used there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import venv
import zipfile
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

pytestmark = pytest.mark.xdist_group("wheel")  # which is built once
HERE = Path(__file__).parents[2]
PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
EXTRAS = ["confluent_kafka", "pika", "coredis", "greenstalk", "nats", "prometheus_client", "matplotlib"]
USE = """
import sys
sys.modules.update(dict.fromkeys(sys.argv[1:]))  # as if they were not there
import localdelay, localdelay.aio, localdelay.testing, localdelay.cli
print(localdelay.__file__)
print(*{name.partition(".")[0] for name, module in sys.modules.items() if module})
"""


def run(*command: str | Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", env=environment, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from what lies here, by what is installed already: nothing is downloaded."""
    directory = tmp_path_factory.mktemp("wheel")
    run(*PIP, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", directory, HERE)
    (built,) = directory.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def fresh(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment with the wheel, which finds its dependencies in the one of the tests."""
    directory = tmp_path_factory.mktemp("fresh")
    venv.create(directory)
    programs = directory / "bin"
    run(*PIP, "--python", programs / "python", "install", "--no-deps", "--no-index", wheel)
    there = run(programs / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    Path(there, "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return programs


def dependencies(name: str) -> set[str]:
    """The distributions that this one needs, extras apart, and what these need."""
    found = {name}
    for line in requires(name) or ():
        needed = Requirement(line)
        if needed.marker is None or needed.marker.evaluate({"extra": ""}):
            found |= dependencies(canonicalize_name(needed.name))
    return found


def test_the_wheel_holds_the_library_and_nothing_else(wheel: Path) -> None:
    """Each file of the package, the marker of its types among them, and no test."""
    files = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    here = (path for path in (HERE / "localdelay").rglob("*") if path.is_file())
    assert files == {path.relative_to(HERE).as_posix() for path in here if "__pycache__" not in path.parts}
    assert "localdelay/py.typed" in files


def test_its_page_has_no_link_to_a_file(wheel: Path) -> None:
    """An index shows the README, and has none of the files; those in the package are named by their paths."""
    with zipfile.ZipFile(wheel) as opened:
        (name,) = (name for name in opened.namelist() if name.endswith(".dist-info/METADATA"))
        page = opened.read(name).decode()
    assert "# localdelay\n" in page
    assert "](" not in page
    assert {"localdelay/journal/README.md", "localdelay/CHANGELOG.md"} <= set(
        re.findall(r"\(`(.*?)`\)", page)
    )


def test_it_is_imported_without_extras(fresh: Path) -> None:
    """From where it was installed, with no more than what it says it needs."""
    path, loaded = run(fresh / "python", "-c", USE, *EXTRAS).splitlines()
    assert path.startswith(str(fresh.parent))
    owners = packages_distributions()
    used = {canonicalize_name(owner) for name in loaded.split() for owner in owners.get(name, ())}
    assert "trio" in used
    assert used <= dependencies("localdelay")


def test_its_command_runs(fresh: Path) -> None:
    """`localdelay` is there, and says what to reserve."""
    options = "--qps 100000 --delay 2m --instances 500 --message-bytes 500 --worker-qps 10"
    assert "24,000" in run(fresh / "localdelay", "plan", *options.split())
