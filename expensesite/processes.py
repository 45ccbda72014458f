"""Processes that must not outlive their parent."""

import ctypes
import os
import signal
import sys

if sys.platform == "linux":
    _PR_SET_PDEATHSIG = 1
    # Loaded here, since nothing may be loaded between fork and exec.
    _prctl = ctypes.CDLL(None, use_errno=True).prctl


def die_with(parent: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Send this process the signal when its parent, the process `parent`, ends (Linux only)."""
    if sys.platform == "linux":
        _prctl(_PR_SET_PDEATHSIG, number)
        if os.getppid() != parent:  # the parent ended before the call
            os.kill(os.getpid(), number)
