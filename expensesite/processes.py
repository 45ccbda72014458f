"""Processes that must not outlive the one that started them."""

import ctypes
import os
import signal
import sys

if sys.platform == "linux":
    _PR_SET_PDEATHSIG = 1
    # Loaded here: between fork and exec nothing may be.
    _prctl = ctypes.CDLL(None, use_errno=True).prctl


def die_with(parent: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Have this process get the signal when its parent, the process `parent`, ends (Linux only)."""
    if sys.platform == "linux":
        _prctl(_PR_SET_PDEATHSIG, number)
        if os.getppid() != parent:  # it ended before the call
            os.kill(os.getpid(), number)
