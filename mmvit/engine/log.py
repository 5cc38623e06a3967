"""What the console shows and what only the log file holds.

MMEngine logs everything it does; all of it goes to ``WORK_DIR/<time>/<time>.log``. The console gets warnings, errors and
the lines given to `say`. Both share one rich console with the progress bar, so that lines never tear the bar.
"""

from __future__ import annotations

import logging
from functools import lru_cache
from pathlib import Path

from mmengine.logging import MMLogger
from rich.console import Console


@lru_cache(maxsize=1)
def console() -> Console:
    """The console of this process (it writes to whatever `sys.stdout` is at the time)."""
    return Console(highlight=False, soft_wrap=True)


class ConsoleHandler(logging.Handler):
    """Prints warnings, errors and records marked ``console=True``, without time stamps."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno < logging.WARNING and not getattr(record, "console", False):
            return
        prefix, style = "", ""
        if record.levelno >= logging.ERROR:
            prefix, style = "error: ", "bold red"
        elif record.levelno >= logging.WARNING:
            prefix, style = "warning: ", "yellow"
        console().print(prefix + record.getMessage(), style=style, markup=False)


def say(message: str) -> None:
    """Log `message` and show it on the console (of the first process only)."""
    MMLogger.get_current_instance().info(message, extra={"console": True})


def shown(path: str | Path) -> str:
    """`path` as a reader wants it: relative below the current folder, else absolute."""
    path = Path(path).absolute()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def quiet_console(logger: MMLogger) -> None:
    """Replace MMEngine's stream handler of `logger` by `ConsoleHandler`, keeping its level."""
    for i, handler in enumerate(logger.handlers):
        if type(handler) is logging.StreamHandler:
            quiet = ConsoleHandler(handler.level)
            for log_filter in handler.filters:
                quiet.addFilter(log_filter)
            logger.handlers[i] = quiet
