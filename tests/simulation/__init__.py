"""Generated scenes in the life of a queue, played in virtual time, with every promise checked at every step.

`scene` draws what is done, `world` does it, with `realqueue` and `disk` as what the queue stands on, `story`
is what is promised of one message, `checks` compares all of it with what the queue says, and `marks` notes
which branches were visited. `python -m tests.simulation` plays fresh scenes, or one again.
"""
