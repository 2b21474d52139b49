"""What `groupwise.accelerate` makes of a stock Keras model: one training step before and after, in one run.

    python -m benchmarks.accelerating [--model M] [--backend B] [--batch N] [--rounds N] [--output FILE]

Each side is a process of its own on the same backend: the stock model, and the same model accelerated, which also says
how far its outputs are from the stock one's. They take turns; the ratio is the median over the rounds, of steps after
the warm-up, whose seconds stand beside it. ResNeXt-50 of stock layers needs minutes a step on JAX and TensorFlow: it is
timed for one step after compiling (--once), past the cap as a lower bound.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from benchmarks import tables
from benchmarks.rivals import race, race_once
from benchmarks.stock import SUBJECTS
from benchmarks.timing import PACKAGES, environment
from benchmarks.worker import Task
from groupwise.frameworks import FRAMEWORKS

KEY = ("model", "step", "backend")


def compare(stock: Task, rounds: int | None) -> tables.Row:
    """Return the row of a model: both sides in turn, or one step of the stock one where `rounds` is None."""
    tasks = {"accelerated": replace(stock, library="accelerated"), "stock": stock}
    result = race_once(tasks) if rounds is None else race(tasks, rounds)
    size = f", {stock.size}x{stock.size}" if stock.size else ""
    return {
        **dict(zip(KEY, (stock.network, f"train, batch {stock.batch}{size}", stock.backend), strict=True)),
        **{f"{name}, s": f"{min(result.times[name]):.3g}" for name in ("stock", "accelerated")},
        "times as fast": result.times_as_fast("accelerated", "stock", digits=1 if rounds is None else 2),
        **result.first_steps("accelerated", "stock"),
        "outputs differ by": f"{result.starts['accelerated'].difference:.1e}",
    }


def main() -> None:
    """Print the rows, and merge them into --output as soon as a model is measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", choices=SUBJECTS, help="default: all")
    parser.add_argument("--backend", action="append", choices=FRAMEWORKS)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, help="images' height; default: the model's")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--once", action="store_true", help="one step of the stock model, for those that take minutes")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    run = environment("keras", *PACKAGES.values())
    print(f"{run}\n", flush=True)
    for model in options.model or SUBJECTS:
        for backend in options.backend or FRAMEWORKS:
            stock = Task(backend, "keras", model, batch=options.batch, size=options.size)
            row = compare(stock, None if options.once else options.rounds)
            print("\n".join(tables.table([row])), flush=True)
            if options.output:
                tables.merge_rows(options.output, run, [row], KEY)


if __name__ == "__main__":
    main()
