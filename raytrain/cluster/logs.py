"""What was said of a run: <run>/logs/<who>.log, of bounded size."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from logging.handlers import RotatingFileHandler
from pathlib import Path

LOGS = "logs"
LOG_BYTES, LOGS_KEPT = 2**20, 2
"""Of one file; older ones of the same name."""


@contextmanager
def logging_into(folder: Path, who: str) -> Iterator[None]:
    """Whatever raytrain and Ray Train log in this process goes into the run's folder too, until the block ends."""
    (folder / LOGS).mkdir(parents=True, exist_ok=True)
    handler = RotatingFileHandler(
        folder / LOGS / f"{who}.log", maxBytes=LOG_BYTES, backupCount=LOGS_KEPT, encoding="utf-8"
    )
    handler.setFormatter(logging.Formatter("%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s"))
    loggers = [logging.getLogger(name) for name in ("raytrain", "ray.train")]
    before = loggers[0].level
    loggers[0].setLevel(logging.INFO)
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        loggers[0].setLevel(before)
        for logger in loggers:
            logger.removeHandler(handler)
        handler.close()
