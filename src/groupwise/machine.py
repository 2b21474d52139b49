"""What the machine is."""

import os
import platform
import subprocess
import sys
from pathlib import Path

_NAMES = ("model name", "CPU implementer", "CPU part")  # of x86-64, and of AArch64


def usable_cores() -> int:
    """The cores that this process may run on."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS, Windows
        return os.cpu_count() or 1


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
