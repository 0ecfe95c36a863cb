"""How gunicorn runs `flask_app`; `--config gunicorn_settings.py`."""

from typing import Any

workers = 2
threads = 8
graceful_timeout = 30  # seconds: over the grace of the drain


def post_fork(server: Any, worker: Any) -> None:
    """Open a queue in each worker."""
    import flask_app

    flask_app.worker.open()


def worker_exit(server: Any, worker: Any) -> None:
    """Drain it when its worker ends."""
    import flask_app

    flask_app.worker.close()
