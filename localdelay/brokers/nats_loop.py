"""trio-asyncio, as what talks to NATS imports it: quietly, and with a clear word where it can't be."""

from __future__ import annotations

import platform
import warnings

__all__ = ["trio_asyncio"]

try:
    with warnings.catch_warnings():
        # Python 3.12 and 3.13 warn of the child watchers of asyncio: trio-asyncio has one.
        warnings.simplefilter("ignore", DeprecationWarning)
        import trio_asyncio
except AttributeError as error:  # from Python 3.14 on asyncio has none
    raise ModuleNotFoundError(
        f"nats:// needs trio-asyncio, and the one that is installed can't be imported on Python "
        f"{platform.python_version()} ({error}): use Python 3.11 to 3.13, or a later trio-asyncio"
    ) from error
