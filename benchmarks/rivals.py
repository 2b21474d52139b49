"""Rivals in processes of their own (`worker.py`): they take turns or, where one needs minutes, follow each other."""

import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

from benchmarks.tables import Row
from benchmarks.timing import Times, alternate, ratio
from benchmarks.worker import Start, Task

TIME_CAP = 400.0  # seconds of a step

ENVIRONMENT = {
    "cpu": {"CUDA_VISIBLE_DEVICES": ""},
    # All rivals lie on the card at once: none may take its memory beforehand.
    "gpu": {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "TF_FORCE_GPU_ALLOW_GROWTH": "true"},
}


class Worker:
    """A rival's process: `step()` runs steps there for a turn and returns the seconds of one."""

    def __init__(self, task: Task) -> None:
        self.task = task
        variables = {"KERAS_BACKEND": task.backend, "TF_CPP_MIN_LOG_LEVEL": "3", "GROUPWISE_TUNING": "0"}
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the process
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", json.dumps(asdict(task))],
            env={**os.environ, **variables, **ENVIRONMENT[task.device]},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )
        self.lines: queue.Queue[str] = queue.Queue()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put("")

    def _answer(self, seconds: float | None) -> str:
        """Return the next line of the process. Raises SystemExit if it ended, queue.Empty after `seconds`."""
        if line := self.lines.get(timeout=seconds):
            return line
        self.process.wait()
        self.errors.seek(0)
        said = self.errors.read().strip().splitlines()
        task = self.task
        raise SystemExit(
            f"{task.library}'s {task.network} on {task.backend}: {said[-1] if said else 'the worker ended'}"
        )

    def start(self, seconds: float | None = None) -> Start:
        """Return how it started, when it has. Raises SystemExit, with what it said, if it ended."""
        return Start(**json.loads(self._answer(seconds)))

    def step(self, seconds: float | None = None) -> float:
        """Run steps there and return the seconds that one took. Raises queue.Empty after `seconds`."""
        assert self.process.stdin is not None
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        return float(self._answer(seconds))

    def close(self) -> None:
        with self.process, self.errors:
            self.process.kill()
            self.reader.join()


@dataclass(frozen=True)
class Race:
    """How rivals started and what a step took each in every round; `is_capped`, if one did not come to its end."""

    starts: dict[str, Start]
    times: Times
    is_capped: bool = False

    def times_as_fast(self, ours: str, rival: str, digits: int) -> str:
        """Return how many times as fast `ours` is as `rival`, as a cell of a table."""
        return f"{'at least ' * self.is_capped}{ratio(self.times, rival, ours):.{digits}f}"

    def memory(self, ours: str, rival: str) -> Row:
        """Return a cell of our memory over the rival's, empty where either is not known."""
        mine, its = (self.starts[name].memory if name in self.starts else 0 for name in (ours, rival))
        return {"memory": f"{mine / its:.2f}" if mine and its else ""}

    def first_steps(self, ours: str, rival: str) -> Row:
        """Return cells of the seconds of our first step, our warm-up and the rival's first step, if it ended."""
        start = self.starts[ours]
        return {
            "first step, s": f"{start.first:.3g}",
            "warm-up, s": f"{start.warm_up:.3g}",
            "rival's first step, s": f"{self.starts[rival].first:.3g}" if rival in self.starts else "",
        }


def race(tasks: Mapping[str, Task], rounds: int) -> Race:
    """Start rivals one after the other, so that none disturbs another's first steps, then let them take turns."""
    workers: dict[str, Worker] = {}
    starts = {}
    try:
        for name, task in tasks.items():
            workers[name] = Worker(task)
            starts[name] = workers[name].start()
        return Race(starts, alternate({name: worker.step for name, worker in workers.items()}, rounds))
    finally:
        for worker in workers.values():
            worker.close()


def race_once(tasks: Mapping[str, Task]) -> Race:
    """Run rivals after each other: three steps of the first one; of others, which need minutes, one after compiling."""
    starts: dict[str, Start] = {}
    times: Times = {}
    is_capped = False
    for name, task in tasks.items():
        worker = Worker(replace(task, warm_up=1) if times else task)
        try:
            starts[name] = worker.start(TIME_CAP * 3)
            times[name] = [min(worker.step(TIME_CAP) for _ in range(1 if times else 3))]
        except queue.Empty:
            is_capped, times[name] = True, [TIME_CAP]
        finally:
            worker.close()
    return Race(starts, times, is_capped)
