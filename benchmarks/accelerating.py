"""What `groupwise.accelerate` makes of a stock Keras model: one training step before and after, in one run.

    python -m benchmarks.accelerating [--model M] [--backend B] [--batch N] [--rounds N] [--output FILE]

Each side is a process of its own on the same backend: the stock model, and the same model accelerated, which also says
how far its outputs are from the stock one's. They take turns; the ratio is the median over the rounds. ResNeXt-50 of
stock layers needs minutes a step on JAX and TensorFlow: it is timed for one step after compiling (--once), past the cap
as a lower bound.
"""

import argparse
import queue
from pathlib import Path

from benchmarks import tables
from benchmarks.models import TIME_CAP, Worker
from benchmarks.stock import SUBJECTS
from benchmarks.timing import PACKAGES, Times, alternate, environment, ratio
from groupwise.frameworks import FRAMEWORKS

KEY = ("model", "step", "backend")


def compare(model: str, backend: str, batch: int, rounds: int) -> tables.Row:
    """Return the row of a model that both sides can run several times."""
    workers = {library: _start(library, model, backend, batch) for library in ("keras", "accelerated")}
    try:
        answers = {library: worker.answer() for library, worker in workers.items()}
        times = alternate({library: worker.step for library, worker in workers.items()}, rounds)
    finally:
        for worker in workers.values():
            worker.close()
    return _row(model, backend, batch, times, answers["accelerated"])


def compare_once(model: str, backend: str, batch: int) -> tables.Row:
    """Return the row of a model whose stock side takes minutes: one step of it, three of ours, one after the other."""
    times: Times = {}
    said, is_capped = "", False
    for library in ("accelerated", "keras"):
        worker = _start(library, model, backend, batch)
        try:
            said = said or worker.answer(TIME_CAP * 3)
            if library == "keras":
                worker.answer(TIME_CAP * 2)
            times[library] = [min(worker.step(TIME_CAP) for _ in range(3 if library == "accelerated" else 1))]
        except queue.Empty:
            is_capped, times[library] = True, [TIME_CAP]
        finally:
            worker.close()
    return _row(model, backend, batch, times, said, is_capped)


def _start(library: str, model: str, backend: str, batch: int) -> Worker:
    return Worker(backend, library=library, network=model, mode="train", batch=batch, warm_up=1)


def _row(model: str, backend: str, batch: int, times: Times, said: str, is_capped: bool = False) -> tables.Row:
    bound = "at least " * is_capped
    cells = (
        f"train, batch {batch}",
        backend,
        f"{min(times['keras']):.3g}",
        f"{min(times['accelerated']):.3g}",
        f"{bound}{ratio(times, 'keras', 'accelerated'):.1f}",
        said.removeprefix("ready").strip(),
    )
    return dict(
        zip((*KEY, "stock, s", "accelerated, s", "times as fast", "outputs differ by"), (model, *cells), strict=True)
    )


def main() -> None:
    """Print the rows, and merge them into --output as soon as a model is measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", choices=SUBJECTS, help="default: all")
    parser.add_argument("--backend", action="append", choices=FRAMEWORKS)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--once", action="store_true", help="one step of the stock model, for those that take minutes")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    run = environment("keras", *PACKAGES.values())
    print(f"{run}\n", flush=True)
    for model in options.model or SUBJECTS:
        for backend in options.backend or FRAMEWORKS:
            if options.once:
                row = compare_once(model, backend, options.batch)
            else:
                row = compare(model, backend, options.batch, options.rounds)
            print("\n".join(tables.table([row])), flush=True)
            if options.output:
                tables.merge_rows(options.output, run, [row], KEY)


if __name__ == "__main__":
    main()
