"""How far the memory of this process grows during a call."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

_PROCESS = Path("/proc/self")


def resident_growth(run: Callable[[], Any]) -> int | None:
    """Bytes by which the process's resident memory at its highest exceeded that before the call; None where Linux is not."""
    try:
        (_PROCESS / "clear_refs").write_text("5")  # forget the highest value so far
        before = _status("VmRSS")
    except OSError:
        return None
    run()
    return max(0, _status("VmHWM") - before)


def _status(key: str) -> int:
    return 1024 * int(re.search(rf"^{key}:\s+(\d+) kB", (_PROCESS / "status").read_text(), re.MULTILINE)[1])
