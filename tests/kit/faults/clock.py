"""A wall clock that can be stepped, for one process and what it loads: SQLite and datetime included.

A shared library that stands before the C library's, so that nothing in Python has to be replaced. The
monotonic clock is left as it is, as it is when a machine's wall clock is set.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.kit.servers.process import NotInstalled

_VARIABLE = "LOCALDELAY_TEST_CLOCK"
_SOURCE = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>

static volatile int64_t *ahead;

__attribute__((constructor)) static void open_ahead(void) {
    const char *path = getenv("LOCALDELAY_TEST_CLOCK");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0) abort();
    void *memory = mmap(0, sizeof *ahead, PROT_READ, MAP_SHARED, file, 0);
    if (memory == MAP_FAILED) abort();
    ahead = memory;
}

static int64_t seconds(void) { return ahead ? *ahead : 0; }

int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*next)(clockid_t, struct timespec *);
    if (!next) next = (int (*)(clockid_t, struct timespec *)) dlsym(RTLD_NEXT, "clock_gettime");
    int failed = next(clock, now);
    if (!failed && clock == CLOCK_REALTIME) now->tv_sec += seconds();
    return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec precise;
    (void) zone;
    if (clock_gettime(CLOCK_REALTIME, &precise)) return -1;
    now->tv_sec = precise.tv_sec;
    now->tv_usec = precise.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *now) {
    struct timespec precise;
    clock_gettime(CLOCK_REALTIME, &precise);
    if (now) *now = precise.tv_sec;
    return precise.tv_sec;
}
"""


class WallClock:
    """What a process that is started with `environ` takes for the wall clock."""

    def __init__(self, directory: Path) -> None:
        """Raises `NotInstalled` where there is no C compiler."""
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            raise NotInstalled("cc is not installed: apt-get install gcc libc6-dev")
        source, library = directory / "clock.c", directory / "clock.so"
        source.write_text(_SOURCE)
        command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"]
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        self._ahead = directory / "ahead"
        self._ahead.write_bytes(bytes(8))
        self.environ: Mapping[str, str] = {"LD_PRELOAD": str(library), _VARIABLE: str(self._ahead)}

    def step(self, ahead: int) -> None:
        """From now on it is so many whole seconds ahead of the true one."""
        with self._ahead.open("r+b", buffering=0) as file:
            file.write(struct.pack("=q", ahead))
