"""What the machine is."""

import math
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

if sys.platform != "win32":
    import resource

_CPUINFO = Path("/proc/cpuinfo")
_NAMES = ("model name", "CPU implementer", "CPU part")  # of x86-64, and of AArch64
UNKNOWN_MEMORY = 2 << 30  # where the system does not tell: little enough for any machine that trains


def usable_cores() -> int:
    """Return the cores that this process may run on, up to its container's limit: what the C core counts too."""
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
    numbers = _group_numbers(root, "cpu", ["cpu.max"], ["cpu.cfs_quota_us", "cpu.cfs_period_us"])
    limits = [quota / period for quota, period in numbers if quota and period]
    return math.ceil(min(limits)) if limits else None


def free_memory(root: Path = Path("/")) -> int:
    """Return the bytes that can be used without swapping: the machine's, or what is left of a container's limit.

    `root`: as for `cpu_limit`.
    """
    unified, legacy = ["memory.max", "memory.current"], ["memory.limit_in_bytes", "memory.usage_in_bytes"]
    left = [limit - used for limit, used in _group_numbers(root, "memory", unified, legacy)]
    return max(min([_free_on_machine(root), *left]), 0)


def peak_memory() -> int | None:
    """Return the most bytes of memory that this process has held at once; None on Windows."""
    if sys.platform == "win32":
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # elsewhere in kilobytes


def _free_on_machine(root: Path) -> int:
    for line in _read(root / "proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    try:  # not Linux: half of what is installed
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (AttributeError, ValueError, OSError):
        return UNKNOWN_MEMORY


def _group_numbers(
    root: Path, controller: str, unified: Sequence[str], legacy: Sequence[str]
) -> Iterator[tuple[int, int]]:
    """Yield the two numbers that files of the process's control groups hold, of the innermost first.

    Nothing is said of a group where they are no numbers, as "max" and -1 are, which set no limit.

    Args:
        root: the folder of the system's files.
        controller: "cpu" or "memory".
        unified, legacy: the files' names in version 2 and version 1.
    """
    for line in _read(root / "proc/self/cgroup").splitlines():
        match line.split(":", 2):
            case [_, "", path]:  # "0::/path" of version 2
                mounted, names = root / "sys/fs/cgroup", unified
            case [_, controllers, path] if controller in controllers.split(","):  # "4:cpu,cpuacct:/path" of version 1
                mounted, names = root / "sys/fs/cgroup" / controller, legacy
            case _:
                continue
        # In a container the mounted folder may be the path's end itself: a part of the path is not there.
        innermost = mounted / path.lstrip("/")
        for folder in (innermost, *innermost.parents):
            numbers = [word for name in names for word in _read(folder / name).split()]
            if len(numbers) == 2 and all(map(str.isdecimal, numbers)):
                yield int(numbers[0]), int(numbers[1])
            if folder == mounted:
                break


def _read(path: Path) -> str:
    """Return the text of a file of the system's; nothing where there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def processor() -> str:
    """Return the processor's model as the system names it, such as "Intel(R) Xeon(R) Gold 6230 CPU @ 2.10GHz"."""
    if sys.platform == "darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or platform.machine()
    if not _CPUINFO.exists():
        return platform.processor() or platform.machine()
    # A processor may have cores of several kinds.
    return ", ".join(dict.fromkeys(_cpuinfo(*_NAMES))) or platform.machine()


def processor_flags() -> frozenset[str]:
    """Return what the processor can do in Linux's words, such as "avx512_bf16"; nothing on other systems."""
    return frozenset(word for text in _cpuinfo("flags", "Features") for word in text.split())


def _cpuinfo(*names: str) -> Iterator[str]:
    """Yield the values of these names that Linux gives for each core."""
    for line in _read(_CPUINFO).splitlines():
        name, _, value = line.partition(":")
        if name.strip() in names:
            yield value.strip()


def cache_folder() -> Path:
    """Return the user's cache folder for groupwise; it may not exist yet."""
    if chosen := os.environ.get("GROUPWISE_CACHE"):
        return Path(chosen).expanduser()
    if chosen := os.environ.get("XDG_CACHE_HOME"):
        return Path(chosen).expanduser() / "groupwise"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "groupwise"
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
        return Path(local) / "groupwise" / "Cache"
    return Path.home() / ".cache" / "groupwise"
