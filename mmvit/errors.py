"""Errors that are written for the person who runs a command."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can mend.

    The message says what was wrong, where (file, key, image id) and what to do. The command line prints it
    without a traceback and exits with status 2.
    """

    def __init__(self, message: str):
        # A data-loader worker hands an error on with its traceback as text: keep the message.
        if message.startswith("Caught ") and "DataLoader worker" in message.partition("\n")[0]:
            message = message.rpartition("Error: ")[2].strip()
        super().__init__(message)


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """A hint such as ``" Did you mean 'backbone'?"`` for the closest of `choices`, or an empty string."""
    close = difflib.get_close_matches(str(word), [str(c) for c in choices], n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""
