"""Rivals that take turns in one run, what their times say, and where they were measured."""

import importlib.metadata
import math
import os
import platform
import shutil
import statistics
import subprocess
from collections.abc import Callable, Iterable, Mapping
from functools import partial

from groupwise.frameworks import FRAMEWORKS
from groupwise.machine import processor
from groupwise.timing import Work, seconds

Times = dict[str, list[float]]

PACKAGES = {name: framework.packages[0] for name, framework in FRAMEWORKS.items()}
"""What each framework is installed as."""


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


def timed(work: Work) -> Callable[[], float]:
    """Return a function that does `work` (which must wait for its own result) and returns the seconds it took."""
    return partial(seconds, work)


def repeated(work: Work, once: float, turn: float) -> Callable[[], float]:
    """Return a function that does `work` for about `turn` seconds and returns the mean seconds of once.

    Args:
        once: seconds that `work` takes, about.
    """
    times = max(1, math.ceil(turn / once))
    run = timed(lambda: [work() for _ in range(times)])
    return lambda: run() / times


def ratio(times: Times, rival: str, ours: str) -> float:
    """Return how many times faster `ours` is than `rival`: the median over the rounds of their pairwise ratios."""
    return statistics.median(b / a for a, b in zip(times[ours], times[rival], strict=True))


def geometric_mean(values: Iterable[float]) -> float:
    """Return the n-th root of the product."""
    return math.exp(statistics.fmean(map(math.log, values)))


def environment(*packages: str, device: str = "cpu") -> str:
    """Return a line with the commit, the versions of `packages`, the cores and the processor's kind and name.

    Where OMP_NUM_THREADS is set it stands there too: PyTorch then has no more threads.

    Args:
        device: "gpu" for a line that ends with the card's name. Raises SystemExit where there is none.
    """
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    versions = []
    for package in packages:
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"{package} absent")
    machine = f"{os.cpu_count()} cores {platform.machine()} ({processor()})"
    threads = os.environ.get("OMP_NUM_THREADS")
    limits = [f"OMP_NUM_THREADS={threads}"] if threads else []
    cards = [graphics_card()] if device == "gpu" else []
    return ", ".join([f"commit {git.stdout.strip()}", *versions, machine, *limits, *cards])


def graphics_card() -> str:
    """Return the name of the first NVIDIA GPU, or raise SystemExit where there is none."""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    names = subprocess.run(command, capture_output=True, text=True, check=False) if shutil.which(command[0]) else None
    if names is None or names.returncode or not names.stdout.strip():
        raise SystemExit("--device gpu: no NVIDIA GPU is here (nvidia-smi finds none)")
    return names.stdout.splitlines()[0]
