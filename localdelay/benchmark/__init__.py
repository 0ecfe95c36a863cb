"""The benchmarks behind `localdelay bench` and `localdelay compare`: an open-loop load, and its fate.

Every latency counts from when a send should have begun: message i is to be put at a time that was fixed
before the run, and is due its delay after that. So a queue that holds up its own load cannot look better for
it (there is no coordinated omission). `held` says once what it means that a rate is held.

`run` is one load through one queue; `compare` is four plans under the same load, each in a process of its own
(`child`). Both, and all of `bench/`, have their loads put by a `Round` and their latencies from a `Meter`.
"""
