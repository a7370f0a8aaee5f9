"""Waiting for what another process or thread does."""

import subprocess
import time
from collections.abc import Callable


def wait_until(
    condition: Callable[[], object], seconds: float = 120, process: subprocess.Popen | None = None
) -> None:
    """Waits for a condition; fails after so many seconds, or at once where a process ended without it."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process is None or process.poll() is None or condition(), f"ended with {process.returncode}"
        assert time.monotonic() < deadline, f"not within {seconds} seconds"
        time.sleep(0.005)
