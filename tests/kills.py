"""Kill a training at random moments and go on with it until it ends: `python -m tests.kills [--backend B] [--kills N]`.

The command trains in a process of its own, or in several (`--processes 2`), of which one is killed and the others end.
It writes a checkpoint every other step, and is sent SIGKILL at moments drawn at random, also while it writes; the same
command line, with `--resume auto`, goes on. What is left must be, to the bit, what an undisturbed run leaves: weights,
the optimizer's state, the weights' average, random states, metrics.csv.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from groupwise.frameworks import FRAMEWORKS
from groupwise.training import checkpoints
from groupwise.training.checkpoints import Checkpoint
from tests import tiny as bars
from tests.processes import free_port

COMMAND = [sys.executable, "-c", "import sys; from groupwise.cli import main; sys.exit(main())"]
TIMED = {"seconds", "images_per_second", "share_waited"}
RECIPE = """
model = "mnist_cnn"
epochs = 6
batch_size = 8
learning_rate = 0.002
optimizer = "adamw"
weight_decay = 0.01
average = 0.9
dtype = "float32"
[augmentation]
crop_padding = 1
"""


def start(
    backend: str, folder: Path, output: str, count: int = 1, options: Sequence[str] = ()
) -> list[subprocess.Popen[bytes]]:
    """Start the command, with further options, in as many processes, or go on with what it has left."""
    arguments = ["train", "bars.npz", "--recipe", "kills.toml", "--output", output, "--resume", "auto"]
    environment = {**os.environ, "KERAS_BACKEND": backend, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    arguments += ["--checkpoint-every", "2steps", *options]
    where = ["--coordinator", f"127.0.0.1:{free_port()}", "--processes", str(count)] if count > 1 else []
    given: Any = {"cwd": folder, "env": environment, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    own = ([*where, "--process", str(index)] if where else [] for index in range(count))
    return [subprocess.Popen([*COMMAND, *arguments, *place], **given) for place in own]


def disturbed(
    backend: str, folder: Path, kills: int, draw: random.Random, count: int = 1, options: Sequence[str] = ()
) -> tuple[int, int]:
    """Run the command, and kill it while it lives long enough; return how many kills and how many starts that were."""
    done = starts = 0
    while True:
        processes, starts = start(backend, folder, "disturbed", count, options), starts + 1
        process = draw.choice(processes)
        before = checkpoints.paths(folder / "disturbed" / "checkpoints")
        while process.poll() is None and checkpoints.paths(folder / "disturbed" / "checkpoints") == before:
            time.sleep(0.001)
        if process.poll() is None and done < kills:
            time.sleep(draw.random() * 0.1)
            process.send_signal(signal.SIGKILL)
            done += 1
        statuses = [each.wait(timeout=60) for each in processes]
        if not any(statuses):
            return done, starts
        if process.returncode != -signal.SIGKILL or {*statuses} - {-signal.SIGKILL, 1}:
            raise RuntimeError(f"the training ended with {statuses}")


def differences(found: Checkpoint, expected: Checkpoint) -> list[str]:
    """Return the names of what is not the same to the bit."""
    arrays = [name for name in expected.arrays if not np.array_equal(found.arrays[name], expected.arrays[name])]
    rows = [[{k: v for k, v in row.items() if k not in TIMED} for row in each.rows] for each in (found, expected)]
    return arrays + ["metrics.csv"] * (rows[0] != rows[1])


def killed(backend: str, kills: int, seed: int = 0, count: int = 1, options: Sequence[str] = ()) -> list[str]:
    """Train undisturbed and disturbed, print a row, and return the names of what is different."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        bars.write_npz(folder / "bars.npz")
        (folder / "kills.toml").write_text(RECIPE)
        undisturbed = start(backend, folder, "undisturbed", count, options)
        if [process.wait() for process in undisturbed] != [0] * count:
            raise RuntimeError("the undisturbed training failed")
        done, starts = disturbed(backend, folder, kills, random.Random(seed), count, options)
        ends = [checkpoints.newest(folder / name / "checkpoints")[0] for name in ("disturbed", "undisturbed")]
    found, expected = ends
    assert found is not None
    assert expected is not None
    wrong = differences(found, expected)
    row = backend, count, done, starts, found.step, len(found.arrays), len(wrong)
    print("|", " | ".join(map(str, row)), "|", flush=True)
    return wrong


def main() -> int:
    """Kill, go on, compare, and print a row; the exit status is 1 where something differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", action="append", choices=FRAMEWORKS, help="only this one (repeatable)")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args()
    print(
        "| backend | processes | kills | starts | steps | arrays compared | different |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    )
    found = [
        killed(backend, options.kills, options.seed, options.processes) for backend in options.backend or FRAMEWORKS
    ]
    return int(any(map(bool, found)))


if __name__ == "__main__":
    sys.exit(main())
