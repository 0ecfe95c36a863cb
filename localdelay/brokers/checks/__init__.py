"""Whether a broker is set up for this: one module a broker, each with a `look` on a connection of its own.

A broker that is not is often none that `open_broker` opens: so nothing here stands on a connection that it
has made. What is found is told as `Finding`s; where there is no broker, a `ConnectionError` is raised.
"""
