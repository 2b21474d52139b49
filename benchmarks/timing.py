"""The only timer: rivals take turns in one run, so that a noisy machine disturbs all of them alike."""

import importlib.metadata
import math
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

Times = dict[str, list[float]]


def alternate(rivals: Mapping[str, Callable[[], float]], rounds: int) -> Times:
    """Return the seconds of every rival in every round; each is called once a round, in order.

    Args:
        rivals: functions that do the work once and return the seconds that it took (see `timed`).
    """
    times: Times = {name: [] for name in rivals}
    for _ in range(rounds):
        for name, run in rivals.items():
            times[name].append(run())
    return times


def timed(work: Callable[[], object]) -> Callable[[], float]:
    """Return a function that does `work` (which must wait for its own result) and returns the seconds it took."""

    def run() -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    return run


def ratio(times: Times, rival: str, ours: str) -> float:
    """Return how many times faster `ours` is than `rival`: the median over the rounds of their pairwise ratios."""
    return statistics.median(b / a for a, b in zip(times[ours], times[rival], strict=True))


def geometric_mean(values: Iterable[float]) -> float:
    """Return the n-th root of the product."""
    return math.exp(statistics.fmean(map(math.log, values)))


def environment(*packages: str) -> str:
    """Return a line with the commit, the versions of `packages`, the cores and the processor's kind and name."""
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    versions = []
    for package in packages:
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"{package} absent")
    machine = f"{os.cpu_count()} cores {platform.machine()} ({_processor()})"
    return ", ".join([f"commit {git.stdout.strip()}", *versions, machine])


def _processor() -> str:
    """Return the processor's name where Linux tells it, else what Python knows."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
