"""The life of a message, from the put to its end. What is not in `localdelay.__all__` is private.

To be read in this order: `opening` and `core` put a queue together, and `queue` is what its users see. A
message enters by `admission`, which finds its room in the `ledger`; `pending` has the books of all that has
not ended, and its order is the `schedule`'s, on `lanes` and `bodies`. What is due is taken by `taking`
(with keys `keyed`), as the `valve` lets it go (`valves`: one for each key), for the `workers`; `sending` does
what is done with it, by the rules of `batch`, `retry` and `failures`. `draining`, `handing_back` and
`stopping` end a queue, and `wall` is what happens where the clock is set.
"""
