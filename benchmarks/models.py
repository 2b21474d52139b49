"""Whole networks: training and inference against PyTorch's own networks and against stock Keras.

    python -m benchmarks.models [--mode M] [--network N] [--backend B] [--fold] [--stock] [--device gpu] [--output FILE]

A mode says what a step is: "train" and "infer" 16 images, "image" infers one, "small" trains on 32 images of 32x32.
Ours is what a user writes, `train_on_batch` of a compiled model or `predict_on_batch`; the peer is timm's or
pytorchcv's network in channels_last, or the same network in plain PyTorch. Each rival is a process of its own; they
take turns of half a second, behind a step that does not count, all in one run. The numbers are ratios, the median over
the rounds, above 1 where ours is faster. The first step's seconds, and those of all five of the warm-up, which record
or compile, stand beside them, and by how much memory the process grows meanwhile, ours over the peer's.

--fold measures inference with our batch norms folded too. --stock compares with the same networks made of stock Keras
layers. A stock rival on TensorFlow or JAX needs minutes for one training step, so it is timed for one step after
compiling, at batch 2 (--batch 2) on both sides; past the time cap the ratio is a lower bound.

--openvino compares inference with OpenVINO too: our network as `groupwise export` writes it, in float32, with the
latency hint and two threads.

--device gpu trains on 128 images in bfloat16, ours under `mixed_bfloat16` and the peer under autocast, which runs once
as it is and once through `torch.compile`. The images lie on the card, and every step's loss is read. A CPU tries the
same in small: `--mode train --network mobilenetv1_100 --precision bfloat16 --compiled --batch 2 --size 64`.

--output replaces the rows of this run in the file and leaves the others, so that one row can be measured again:

    FILE=benchmarks/results/models.md
    python -m benchmarks.models --network resnext50_32x4d --mode train --backend jax --output $FILE

A row's last column is the commit of its run; the lines above the table say what each commit was measured with.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks import tables
from benchmarks.peers import PEERS
from benchmarks.rivals import Race, race, race_once
from benchmarks.timing import PACKAGES, environment
from benchmarks.worker import Task
from groupwise.frameworks import FRAMEWORKS

KEY = ("network", "step", "backend", "rival")
SMALL = tuple(network for network, library in PEERS.items() if library == "plain")
LARGE = tuple(network for network in PEERS if network not in SMALL)


@dataclass(frozen=True)
class Mode:
    """What is measured of which networks: training or inference, and the images of a step on each device."""

    networks: tuple[str, ...]
    training: bool
    batch: int
    batch_on_gpu: int


MODES = {
    "train": Mode(LARGE, True, 16, 128),
    "infer": Mode(LARGE, False, 16, 128),
    "image": Mode(LARGE, False, 1, 1),
    "small": Mode(SMALL, True, 32, 32),
}


def compare(peers: Sequence[Task], ours: Sequence[Task], rounds: int) -> list[tables.Row]:
    """Return a row for each of our tasks and each peer's: our speed as a multiple of the peer's."""
    tasks = {_name(task): task for task in (*peers, *ours)}
    result = race(tasks, rounds)
    return [_row(result, task, peer) for peer in peers for task in ours]


def compare_with_stock(ours: Task) -> tables.Row:
    """Return a row: our speed as a multiple of stock Keras's on the same backend, one after the other."""
    stock = replace(ours, library="stock")
    return _row(race_once({_name(task): task for task in (ours, stock)}), ours, stock, digits=1)


def _name(task: Task) -> str:
    """Return what tells a task from the others of its race, and what the tables call it as a rival."""
    if task.library == "stock":
        return f"stock Keras, {task.backend}"
    if task.library == "openvino":
        return "OpenVINO"
    if task.library in PEERS.values():
        return f"{task.library}, PyTorch {'compiled' if task.compiled else 'channels_last'}"
    return f"{task.library}, {task.backend}"


def _row(result: Race, ours: Task, rival: Task, digits: int = 2) -> tables.Row:
    step = [
        "train" if ours.training else "infer",
        *["folded"] * (ours.library == "folded"),
        f"batch {ours.batch}",
        *[f"{ours.size}x{ours.size}"] * (ours.size is not None),
        *["bfloat16"] * (ours.precision == "bfloat16"),
    ]
    where = (ours.network, ", ".join(step), ours.backend, _name(rival))
    images = f"{'below ' * result.is_capped}{rival.batch / min(result.times[_name(rival)]):.3g}"
    return {
        **dict(zip(KEY, where, strict=True)),
        "rival, img/s": images,
        "times as fast": result.times_as_fast(_name(ours), _name(rival), digits),
        **result.first_steps(_name(ours), _name(rival)),
        **result.memory(_name(ours), _name(rival)),
    }


def measure(mode: str, network: str, options: argparse.Namespace) -> list[tables.Row]:
    """Return the rows of a network in a mode, as the options say; None is the device's or the mode's."""
    chosen = MODES[mode]
    is_gpu = options.device == "gpu"
    peer = Task(
        "torch",
        PEERS[network],
        network,
        chosen.training,
        options.batch or (chosen.batch_on_gpu if is_gpu else chosen.batch),
        options.size,
        options.precision or ("bfloat16" if is_gpu else "float32"),
        options.device,
    )
    backends = options.backend or list(FRAMEWORKS)
    ours = [replace(peer, backend=backend, library="groupwise") for backend in backends]
    if options.stock:
        return [compare_with_stock(task) for task in ours]
    if options.fold and not chosen.training:
        ours += [replace(task, library="folded") for task in ours]
    peers = [peer, *[replace(peer, compiled=True)] * (is_gpu or options.compiled)]
    if options.openvino and not chosen.training:
        peers.append(replace(peer, library="openvino"))
    return compare(peers, ours, options.rounds)


def main() -> None:
    """Print the rows, and merge them into --output as soon as a network is measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mode", action="append", choices=MODES, help="default: train and infer; on a GPU, train")
    parser.add_argument("--network", action="append", choices=PEERS, help="default: all of the mode's")
    parser.add_argument("--backend", action="append", choices=FRAMEWORKS)
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--batch", type=int, help="default: the mode's")
    parser.add_argument("--size", type=int, help="images' height; default: the network's, the only one of pytorchcv's")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), help="default: float32, on a GPU bfloat16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--stock", action="store_true", help="compare with stock Keras instead of PyTorch")
    parser.add_argument("--fold", action="store_true", help="infer with our batch norms folded, too")
    parser.add_argument("--compiled", action="store_true", help="the peer through torch.compile too, as on a GPU")
    parser.add_argument("--openvino", action="store_true", help="infer against OpenVINO, too")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    modes = options.mode or (["train"] if options.device == "gpu" else ["train", "infer"])
    wanted = [
        (mode, network) for mode in modes for network in MODES[mode].networks if network in (options.network or PEERS)
    ]
    if not wanted:
        parser.error("--network: the modes that are asked for have none of these")
    run = environment("keras", *PACKAGES.values(), "timm", "pytorchcv", device=options.device)
    print(f"{run}\n", flush=True)
    for mode, network in wanted:
        rows = measure(mode, network, options)
        print("\n".join(tables.table(rows)), flush=True)
        if options.output:
            tables.merge_rows(options.output, run, rows, KEY)


if __name__ == "__main__":
    main()
