"""Whole networks: training and inference against timm or pytorchcv in PyTorch and against stock Keras.

    python -m benchmarks.models [--network N] [--mode M] [--backend B] [--batch N] [--stock] [--fold] [--output FILE]

All rivals run in one run, alternating, each in a process of its own; the numbers are ratios, the median over the
rounds. Above 1 we are faster. With --stock, our networks are also compared with the same networks made of stock Keras
layers. A stock rival on TensorFlow or JAX needs minutes for one training step, so it is timed for one step after
compiling, at batch 2 (--batch 2) on both sides; past the time cap the ratio is a lower bound.

--output replaces the rows of this run in the file and leaves the others, so that one row can be measured again:

    FILE=benchmarks/results/models.md
    python -m benchmarks.models --network resnext50_32x4d --mode train --backend jax --output $FILE

A row's last column is the commit of its run; the lines above the table say what each commit was measured with.
"""

import argparse
import json
import os
import queue
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from benchmarks import tables
from benchmarks.timing import PACKAGES, alternate, environment, ratio
from groupwise.frameworks import FRAMEWORKS

# network -> (library, its name there)
PEERS = {
    "resnext50_32x4d": ("timm", "resnext50_32x4d"),
    "shufflenet_g3_w1": ("pytorchcv", "shufflenet_g3_w1"),
    "seresnext50_32x4d": ("timm", "seresnext50_32x4d"),
    "mobilenetv1_100": ("timm", "mobilenetv1_100"),
}
TIME_CAP = 400.0
KEY = ("network", "step", "backend", "rival")


class Worker:
    """A rival's process: `step()` runs one step there and returns its seconds."""

    def __init__(self, backend: str, **task: Any) -> None:
        variables = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3", "GROUPWISE_TUNING": "0"}
        command = [sys.executable, "-m", "benchmarks.worker", json.dumps(task)]
        self.process = subprocess.Popen(
            command, env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self.lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put("")

    def answer(self, seconds: float | None = None) -> str:
        """Return the next line of the process; "" if it ended. Raises queue.Empty after `seconds`."""
        return self.lines.get(timeout=seconds).strip()

    def step(self, seconds: float | None = None) -> float:
        """Run one step there and return the seconds it took. Raises queue.Empty after `seconds`."""
        assert self.process.stdin is not None
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        return float(self.answer(seconds))

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def compare(
    network: str, mode: str, batch: int, rounds: int, backends: list[str], fold: bool = False
) -> list[tables.Row]:
    """Return a row a backend: our speed as a multiple of the peer's in PyTorch channels_last."""
    library, name = PEERS[network]
    common = {"mode": mode, "batch": batch, "warm_up": 2}
    workers = {"peer": Worker("torch", library=library, network=name, **common)}
    workers |= {
        backend: Worker(backend, library="folded" if fold else "groupwise", network=network, **common)
        for backend in backends
    }
    try:
        for worker_name, worker in workers.items():
            if worker.answer() != "ready":
                raise SystemExit(f"{worker_name}: the worker for {network} ended; is everything installed?")
        times = alternate({key: worker.step for key, worker in workers.items()}, rounds)
    finally:
        for worker in workers.values():
            worker.close()
    images = f"{batch / min(times['peer']):.1f}"
    rival = f"{library}, PyTorch channels_last"
    return [
        _row(
            network,
            f"{mode}{', folded' * fold}, batch {batch}",
            backend,
            rival,
            images,
            f"{ratio(times, 'peer', backend):.2f}",
        )
        for backend in backends
    ]


def compare_with_stock(network: str, mode: str, batch: int, backend: str) -> tables.Row:
    """Return a row: our speed as a multiple of stock Keras's on the same backend, one step each in turn."""
    seconds: dict[str, float] = {}
    is_capped = False
    for library in ("groupwise", "stock"):
        worker = Worker(backend, library=library, network=network, mode=mode, batch=batch, warm_up=1)
        try:
            if worker.answer(TIME_CAP * 2) != "ready":
                raise SystemExit(f"{library} on {backend}: the worker for {network} ended")
            steps = 3 if library == "groupwise" else 1
            seconds[library] = min(worker.step(TIME_CAP) for _ in range(steps))
        except queue.Empty:
            is_capped, seconds[library] = True, TIME_CAP
        finally:
            worker.close()
    images = "below " * is_capped + f"{batch / seconds['stock']:.3g}"
    times = "at least " * is_capped + f"{seconds['stock'] / seconds['groupwise']:.1f}"
    return _row(network, f"{mode}, batch {batch}", backend, f"stock Keras, {backend}", images, times)


def _row(*cells: str) -> tables.Row:
    return dict(zip((*KEY, "rival, img/s", "times as fast"), cells, strict=True))


def main() -> None:
    """Print the rows, and merge them into --output as soon as a network is measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", action="append", choices=PEERS, help="default: all four")
    parser.add_argument("--mode", action="append", choices=("train", "infer"))
    parser.add_argument("--backend", action="append", choices=FRAMEWORKS)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--stock", action="store_true", help="compare with stock Keras instead of PyTorch")
    parser.add_argument("--fold", action="store_true", help="infer with our batch norms folded, as a user would")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    backends = options.backend or list(FRAMEWORKS)
    run = environment("keras", *PACKAGES.values(), "timm", "pytorchcv")
    print(f"{run}\n", flush=True)
    for network in options.network or PEERS:
        for mode in options.mode or ("train", "infer"):
            if options.stock:
                rows = [compare_with_stock(network, mode, options.batch, backend) for backend in backends]
            else:
                rows = compare(network, mode, options.batch, options.rounds, backends, options.fold)
            print("\n".join(tables.table(rows)), flush=True)
            if options.output:
                tables.merge_rows(options.output, run, rows, KEY)


if __name__ == "__main__":
    main()
