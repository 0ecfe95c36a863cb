"""The benchmarks behind `localdelay bench` and `localdelay compare`: an open-loop load, and its fate.

Every latency counts from when a send should have begun: message i is to be put at a time that was fixed
before the run, and is due its delay after that. A queue that holds up its own load, or a load that is late
by itself, cannot look better for it (there is no coordinated omission). "Held" is said in `held`, once.

`run` is one load through one queue. `compare` is four plans under the same load, each in a process of its own
(`child`), where `measuring` puts the load through what `contenders` opens.
"""
