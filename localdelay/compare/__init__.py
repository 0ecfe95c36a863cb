"""Both plans of the write-up, word for word and as this library builds them, under the same load.

Each plan runs in a process of its own (`child`), which is told what to do by the one that compares (`run`).
`plans` gives all four the same face, `load` puts at a fixed pace and measures, and `crash` counts what a
`kill -9` has lost.
"""
