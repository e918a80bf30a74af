"""Memory of this process: its peak in a stretch of work, and what it may still take."""

import resource
import sys
from contextlib import suppress
from pathlib import Path

import psutil

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_GROUPS, _GROUP_FILES = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
# Files of a limit and of what is used, and the name in memory.stat of what is used for files that
# the kernel can drop: of version 2 (cgroup-v2.rst), then of version 1 (cgroup-v1/memory.rst)
_V2 = ("memory.max", "memory.current", "inactive_file")
_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def reset_peak_memory() -> None:
    """Forget the peak so far; where the system cannot (only Linux can), it is of all time."""
    try:
        _CLEAR.write_text("5")  # proc(5): resets VmHWM
    except OSError:
        return


def peak_memory_mb() -> float:
    """Peak resident memory since the last reset, in megabytes (10^6 bytes)."""
    if _STATUS.exists():
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def free_memory() -> int:
    """Bytes that this process may still take.

    Of the machine, or of its control group on Linux, and those that this one lies in, where they
    allow less: a container's or a batch job's limit, above which the kernel kills.
    """
    free = int(psutil.virtual_memory().available)
    groups = _GROUPS.read_text().splitlines() if _GROUPS.exists() else []
    for _, controllers, path in (line.split(":", 2) for line in groups):  # cgroups(7)
        if not controllers:
            top, names = _GROUP_FILES, _V2
        elif "memory" in controllers.split(","):
            top, names = _GROUP_FILES / "memory", _V1
        else:
            continue
        group = top / path.lstrip("/")
        # in a container the upper part of the path may not be there
        for one in (group, *group.parents):
            if one.is_relative_to(top):
                free = min(free, _left_in(one, *names, otherwise=free))
    return max(0, free)


def _left_in(group: Path, limit: str, used: str, files: str, *, otherwise: int) -> int:
    with suppress(OSError, ValueError):  # no such file; "max"
        left = int((group / limit).read_text()) - int((group / used).read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return left + int(stat[files])
    return otherwise
