"""What a piece of work took: seconds, and the peak memory of host and device."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

__all__ = ["Usage", "measured"]

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass
class Usage:
    """What was measured.

    Args:
        seconds: of wall time, kernels in flight on the device included.
        host_bytes: largest resident memory of this process; where the system has no way to begin a peak anew, the largest so far.
        device_bytes: largest memory that torch had allocated on the device; None on the CPU.
    """

    seconds: float = 0.0
    host_bytes: int | None = None
    device_bytes: int | None = None


@contextmanager
def measured(device: torch.device, before: float = 0.0) -> Iterator[Usage]:
    """Measure what is done inside; the numbers are there when the block ends.

    Args:
        device: whose memory is measured.
        before: seconds that earlier attempts took, which are added.
    """
    found = Usage()
    began_anew = _begin_peak()
    accelerated = device.type == "cuda" and torch.cuda.is_available()
    if accelerated:
        torch.cuda.reset_peak_memory_stats(device)
    started = time.perf_counter()
    try:
        yield found
    finally:
        if accelerated:
            torch.cuda.synchronize(device)
            found.device_bytes = torch.cuda.max_memory_allocated(device)
        found.seconds = round(before + time.perf_counter() - started, 3)
        found.host_bytes = _host_peak(began_anew)


def _begin_peak() -> bool:
    """Let the kernel count this process's peak from here; whether it does."""
    try:
        CLEAR.write_text("5")
    except OSError:
        return False
    return True


def _host_peak(began_anew: bool) -> int | None:
    if began_anew and (found := re.search(r"VmHWM:\s*(\d+) kB", STATUS.read_text())):
        return int(found[1]) * 1024
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
