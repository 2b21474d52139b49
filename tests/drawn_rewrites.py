"""Drawn models before and after every rewrite: `python -m tests.drawn_rewrites --count 2000 [--backend NAME]`.

For each failure it prints the seed, the rewrite, the kinds of difference, and the least model that shows it.
"""

import argparse
import os
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

BACKEND = os.environ.get("KERAS_BACKEND")
BACKENDS = ("tensorflow", "jax", "torch")


@dataclass(frozen=True)
class Rewrite:
    """A rewrite, and what it may change.

    Attributes:
        leave: kinds that it may change, since that is what it is for.
        said: kinds that it may change where the report or the refusal says so: each with a word that it must use.
        moves_penalties: whether one kind of weights may bear what another one cost, as long as the sum stays.
    """

    call: Callable[[Any], Any]
    leave: tuple[str, ...] = ()
    said: tuple[tuple[str, str], ...] = ()
    moves_penalties: bool = False


_TRAINED = ("training", "step")
"""What is no longer the same once it is trained."""
_PENALTIES = (("penalty", "regulari"), ("evaluation", "regulari"))
_COMPILED = (
    *(("compiled", "compile"), ("compiled", "optimizer starts anew"), ("optimizer", "optimizer")),
    *(("class", "is a rewrittennetwork now"), ("saved", "is a rewrittennetwork now")),
)


def _rewrites() -> dict[str, Rewrite]:
    from groupwise import rewrite

    structure = {"leave": (*_TRAINED, "count", "constraint"), "said": (*_COMPILED, *_PENALTIES)}
    return {
        # The biases that a hand-made sum adds up become one.
        "accelerate": Rewrite(
            rewrite.accelerate, said=(*_COMPILED, ("count", "reshape, sum"), ("step", "reshape, sum"))
        ),
        "fuse": Rewrite(rewrite.fuse, said=_COMPILED),
        "fold_batch_norm": Rewrite(rewrite.fold_batch_norm, **structure, moves_penalties=True),
        "to_form a": Rewrite(partial(rewrite.to_form, form="a"), said=_COMPILED),
        "to_form b": Rewrite(partial(rewrite.to_form, form="b"), said=_COMPILED),
        "to_form c": Rewrite(partial(rewrite.to_form, form="c"), said=_COMPILED),
        "grouped_to_dense": Rewrite(rewrite.grouped_to_dense, **structure),
        "separable_to_dense": Rewrite(rewrite.separable_to_dense, **structure),
        "dense_to_separable": Rewrite(partial(rewrite.dense_to_separable, rank=9), **structure),
        "dense_to_grouped": Rewrite(partial(rewrite.dense_to_grouped, groups=2), **structure),
    }


def failures(plan: Any, only: Sequence[str] = (), is_thorough: bool = False) -> Iterator[tuple[str, str]]:
    """Yield each rewrite of a drawn model, and a difference that it may not make.

    Args:
        only: which rewrites; none for all. is_thorough: whether to train, save and clone after each, and rewrite
            again, instead of after one of them.
    """
    from groupwise.errors import UserError
    from groupwise.rewrite import report_of
    from tests import meaning
    from tests.drawn_models import build

    model = build(plan)
    before = meaning.Observed(model)
    rewrites = _rewrites()
    turn = list(rewrites)[plan.seed % len(rewrites)]
    is_trained = is_thorough or BACKEND == "torch" or plan.seed // len(rewrites) % 3 == 0
    for name, rewrite in rewrites.items():
        if only and name not in only:
            continue
        try:
            rewritten = rewrite.call(model)
        except UserError as error:
            if not _may_refuse(name, plan, model, str(error)):
                yield name, f"refused: {error}"
            continue
        except Exception as error:
            yield name, f"crash: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
            continue
        report, gone = str(report_of(rewritten)).lower(), {gone.layer for gone in report_of(rewritten).gone}
        leave = (
            *rewrite.leave,
            *([] if is_trained else meaning.TRAINED),
            *(kind for kind, word in rewrite.said if word in report),
        )
        for difference in meaning.compare(before, rewritten, is_thorough or name == turn, leave):
            if not _is_forgiven(difference, gone, rewrite):
                yield name, difference
    for difference in before.changes():
        yield "(the old model)", difference


def _is_forgiven(difference: str, gone: set[str], rewrite: Rewrite) -> bool:
    """Return whether a difference is at a layer of which the report says that its value is gone, or a moved penalty."""
    kind, where, *_ = difference.split(": ")
    if kind == "penalty" and rewrite.moves_penalties:
        return where != "all"
    return kind in ("name", "value", "training") and where.split(" ")[0] in gone


def _may_refuse(name: str, plan: Any, model: Any, message: str) -> bool:
    if name == "dense_to_grouped" and "can be made grouped" in message:
        return True
    return plan.shell == "calibrated" and type(model).__name__ in message


def shrunk(plan: Any, name: str, kind: str) -> Any:
    """Return the least plan of which a rewrite still makes a difference of a kind."""
    from tests.drawn_models import smaller

    def still(less: Any) -> bool:
        try:
            return any(difference.split(":")[0] == kind for _, difference in failures(less, (name,), True))
        except Exception:  # a smaller plan may be no model
            return False

    for _ in range(40):
        less = next((less for less in smaller(plan) if still(less)), None)
        if less is None:
            break
        plan = less
    return plan


def run(count: int, seed: int, shrink: int) -> int:
    """Try drawn models on this process's backend; print the failures, and how many there were of each kind."""
    import keras

    from tests.drawn_models import draw

    warnings.simplefilter("ignore")
    kinds: Counter[tuple[str, str]] = Counter()
    start = time.process_time()
    for number in range(seed, seed + count):
        plan = draw(number)
        try:
            found = list(failures(plan))
        except Exception as error:
            found = [("(the test)", f"crash: {type(error).__name__}: {str(error).strip()[:300]}")]
        new = []
        for name, difference in found:
            key = (name, difference.split(":")[0])
            if key not in new:
                new.append(key)
                kinds[key] += 1
                print(f"{plan}\n    {name}: {difference}", flush=True)
                if kinds[key] <= shrink and not name.startswith("("):
                    print(f"    least: {shrunk(plan, *key)}", flush=True)
    cost = (time.process_time() - start) / count
    print(f"{keras.backend.backend()}: {count} models, {sum(kinds.values())} failures, {cost:.2f} s of CPU a model")
    for (name, kind), often in kinds.most_common():
        print(f"{often:6} {name}: {kind}")
    return int(bool(kinds))


def main() -> int:
    """Run the drawn models on each backend, one after the other."""
    parser = argparse.ArgumentParser(prog="python -m tests.drawn_rewrites", description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="of the first model")
    parser.add_argument("--shrink", type=int, default=0, help="for so many failures of a kind, find the least model")
    parser.add_argument("--backend", action="append", choices=BACKENDS, help="only this one (repeatable)")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return run(options.count, options.seed, options.shrink)
    status = 0
    for backend in options.backend or BACKENDS:
        environment = {
            **os.environ,
            "KERAS_BACKEND": backend,
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "TF_ENABLE_ONEDNN_OPTS": "1",
        }
        command = [sys.executable, "-m", "tests.drawn_rewrites", "--worker", f"--count={options.count}"]
        command += [f"--seed={options.seed}", f"--shrink={options.shrink}"]
        status = max(status, subprocess.run(command, env=environment, check=False).returncode)
    return status


if __name__ == "__main__":
    sys.exit(main())
