"""What the machine is."""

import math
import os
import platform
import subprocess
import sys
from pathlib import Path

_NAMES = ("model name", "CPU implementer", "CPU part")  # of x86-64, and of AArch64


def usable_cores() -> int:
    """The cores that this process may run on, and no more than its container's limit: what the C core counts too."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS, Windows
        cores = os.cpu_count() or 1
    return min(cores, cpu_limit() or cores)


def cpu_limit(root: Path = Path("/")) -> int | None:
    """Return how many cores' time the process's control groups (a container's --cpus) allow it, rounded up, or None.

    The same as `gw_cpu_limit` in csrc/threads/cores.cc, for where there is no core. `root`: the folder of the system's
    files.
    """
    limits = []
    for line in _read(root / "proc/self/cgroup").splitlines():
        match line.split(":", 2):
            case [_, "", path]:  # "0::/path" of version 2
                mounted, names = root / "sys/fs/cgroup", ["cpu.max"]
            case [_, controllers, path] if "cpu" in controllers.split(","):  # "4:cpu,cpuacct:/path" of version 1
                mounted, names = root / "sys/fs/cgroup/cpu", ["cpu.cfs_quota_us", "cpu.cfs_period_us"]
            case _:
                continue
        # In a container the mounted folder may be the path's end itself: a part of the path is not there.
        innermost = mounted / path.lstrip("/")
        for folder in (innermost, *innermost.parents):
            numbers = [word for name in names for word in _read(folder / name).split()]
            if len(numbers) == 2 and all(map(str.isdecimal, numbers)) and all(map(int, numbers)):
                limits.append(int(numbers[0]) / int(numbers[1]))
            if folder == mounted:
                break
    return math.ceil(min(limits)) if limits else None


def _read(path: Path) -> str:
    """The text of a file of the system's; nothing where there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def processor() -> str:
    """Return the processor's model as the system names it, such as "Intel(R) Xeon(R) Gold 6230 CPU @ 2.10GHz"."""
    if sys.platform == "darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or platform.machine()
    try:
        lines = [line.split(":", 1) for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()]
    except OSError:
        return platform.processor() or platform.machine()
    # A processor may have cores of several kinds.
    named = dict.fromkeys(value.strip() for name, *rest in lines for value in rest if name.strip() in _NAMES)
    return ", ".join(named) or platform.machine()
