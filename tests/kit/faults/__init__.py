"""Proof by breaking it: each fault is done to a real queue, and the broker is then read by id.

row         what one fault came to, and the table
counting    what was put against what the broker has
gauges      memory, files and tasks of a process
scale       how much of a fault is done, and where
victim      the program that is killed and stopped; victims: starting it, ending it, and its log
underway    a queue in this process that sends to a broker while that is broken
proxy       the network, which can be cut
clock       a wall clock that can be stepped
killed      kill -9, and SIGTERM, again and again on one journal
stopped     SIGTERM without a journal, and hand-back to a delayed primary
broken      the broker killed, frozen, throttling, refusing
cut         the network held, slow, reset, swallowing, refusing
stepped     the wall clock stepped by an hour
filled      more than fits into memory
soaked      an hour of virtual time; endured: real time at 5,000 a second
every       all of them, by name
"""
