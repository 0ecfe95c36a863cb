"""The latency benchmark behind `localdelay bench`: an open-loop load, and what became of it.

Every latency counts from when a send should have begun: message i is to be put at a time that was fixed
before the run, and is due its delay after that. A queue that holds up its own load, or a load that is late
by itself, cannot look better for it (there is no coordinated omission).
"""
