"""The life of a message, from the put to its end. What is not in `localdelay.__all__` is private.

To be read in this order: `opening` and `core` put a queue together, and `queue` is what its users see. A
message enters by `admission`, which finds its room in the `ledger`; `pending` has the books of all that has
not ended, and its order is the `schedule`'s, on `lanes`, `bodies`, and `living`, which says what a pair in
the order that stands for nothing is. The `alarm` wakes whoever waits for what is due. That is taken by
`taking` (with keys by `keyed`, which has a line of each in `lines`), as the `valve` lets it go (`valves`: one
for each key), for the `workers`; `sending` does what is done with it, by the rules of `batch`, `retry` and
`failures`, and `worker` tells how a send is ended that takes too long. `draining`, `handing_back` and
`stopping` end a queue, and `wall` is what happens where the clock is set. What is on disk when stands in
`localdelay.journal.commits`.

What a cancellation leaves, by what it cuts off. A message changes its place in one step, between two awaits,
so that each of them finds it in the order, in somebody's hands, or ended:

    a put that waits for room   nothing: it leaves the line, and its id is free
    ... for a journal           is not cut off before the commit has ended: then it is pending, or raises
    a worker that waits         what it has gathered is back in the order; its whole pool has been ended
    a send, or what is written  the message is back in the order, and is sent again under its id
      before it
    a dead-letter hook          its message and those behind it are back: what has expired is given up again,
                                and what had failed is sent once more before it is
    a hand-back                 the message is back where it was; in a drain it stays, and nobody takes it
    a drain                     the workers are ended; what is unfinished is in `messages()`
    a flush                     nothing: the journal goes on
    the opening of a journal    nothing: it has all that was not sent meanwhile
    the block                   as a drain; the journal is told of the rest, for 10 s at most
"""
