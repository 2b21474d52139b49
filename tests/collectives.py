"""What four devices send one another in a training: `python -m tests.collectives [NETWORK...]`.

The command trains a network of each family on JAX with four devices, and XLA writes down what it compiled. Sums over
the devices are of gradients and of batch norms' statistics; nothing else may move, forward or backward.
"""

import argparse
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests import processes
from tests import tiny as bars

MOVES = ("all-gather", "all-to-all", "collective-permute")
NETWORKS = {
    "resnet18": 64,
    "resnext26_32x4d": 64,
    "seresnet18": 64,
    "seresnext26_32x4d": 64,
    "senet16": 64,
    "groupnet_cifar10": 32,
    "resnext29_32x4d_cifar10": 32,
    "shufflenet_g3_wd4": 64,
    "shufflenetv2_wd2": 64,
    "mobilenet_wd4": 64,
    "xception": 96,
    "efficientnet_lite0": 64,
}
"""One of each family, and its images' side."""
DUMP = "--xla_dump_to={} --xla_dump_hlo_as_text --xla_dump_hlo_module_re=.*train_step.*"


def sent(texts: list[str]) -> Counter[str]:
    """Return how often each way to send something stands in what XLA compiled for several devices."""
    several = [text for text in texts if "num_partitions=" in text]
    assert several, "nothing was compiled for several devices"
    return Counter({way: sum(text.count(f" {way}(") for text in several) for way in ("all-reduce", *MOVES)})


def of_training(network: str, side: int) -> Counter[str]:
    """Train a network by the command on four devices, and return what its compiled step sends."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        bars.write_npz(folder / "bars.npz")
        arguments = ["bars.npz", "--model", network, "--image-size", str(side), "--batch-size", "16", "--epochs", "1"]
        environment = processes.environment(devices=4, KERAS_BACKEND="jax", GROUPWISE_COMPILATION_CACHE="0")
        environment["XLA_FLAGS"] += " " + DUMP.format(folder / "texts")
        command = [sys.executable, "-m", "groupwise", "train", *arguments, "--dtype", "float32", "--output", "run"]
        subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
        return sent([path.read_text() for path in (folder / "texts").glob("*after_optimizations.txt")])


def main() -> int:
    """Print a row for each network; the exit status is 1 where something moves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", nargs="*", help="Default: one of each family.")
    networks = parser.parse_args().network or list(NETWORKS)
    print(f"| network | all-reduce | {' | '.join(MOVES)} |\n| --- |{' ---: |' * (1 + len(MOVES))}", flush=True)
    moved = 0
    for network in networks:
        counts = of_training(network, NETWORKS.get(network, 64))
        moved += sum(counts[way] for way in MOVES)
        print(f"| `{network}` | {counts['all-reduce']} | {' | '.join(str(counts[way]) for way in MOVES)} |", flush=True)
    return int(moved > 0)


if __name__ == "__main__":
    sys.exit(main())
