"""One module a broker: send and confirm, tell throttling from failing, native delay where there is one.

A module imports its client at the top, so nothing here imports the modules: each needs an extra.
"""
