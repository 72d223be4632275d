"""How much memory this process took at most: resident memory, which counts mapped model files once touched."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path


def resident_bytes() -> int | None:
    """Resident memory now; None where the system does not say."""
    return _status("VmRSS")


def peak_bytes() -> int | None:
    """The most resident memory since the start of the process, or since `reset_peak` returned True."""
    if (peak := _status("VmHWM")) is not None:
        return peak
    try:
        import resource
    except ImportError:  # Windows
        return None
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024  # macOS counts bytes, others KiB


def reset_peak() -> bool:
    """Start the peak anew from what is resident now; False where the system cannot (all but Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def peak_accelerator_bytes() -> int | None:
    """The most memory that tensors took on this process's CUDA devices; None without one."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return None
    return sum(torch.cuda.max_memory_allocated(index) for index in range(torch.cuda.device_count()))


def load_average() -> float | None:
    """Processes that wanted a CPU over the last minute; None where the system does not say."""
    with contextlib.suppress(OSError, AttributeError):  # Windows has none
        return os.getloadavg()[0]
    return None


def _status(field: str) -> int | None:
    # Not getrusage: a child starts with its parent's maximum, since exec keeps it. VmHWM begins with the program.
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None
