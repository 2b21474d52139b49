"""Drawn models before and after every rewrite: `python -m tests.drawn_rewrites --count 2000 [--backend NAME]`.

For each failure it prints the seed, the rewrite, the kinds of difference, and the least model that shows it.
"""

import argparse
import os
import random
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from groupwise.frameworks import FRAMEWORKS

BACKEND = os.environ.get("KERAS_BACKEND")


@dataclass(frozen=True)
class Rewrite:
    """A rewrite, and what it may change.

    Attributes:
        leave: kinds of difference that it makes on purpose.
        said: kinds that it may make where its report says so, each with a word that must be in it.
    """

    call: Callable[[Any], Any]
    leave: tuple[str, ...] = ()
    said: tuple[tuple[str, str], ...] = (("compiled", "compile"), ("optimizer", "optimizer"))


def rewrites() -> dict[str, Rewrite]:
    """Return every rewrite by a name."""
    from groupwise import rewrite

    # Weights of another structure are others to an optimizer, and cost by other names.
    added_up = "its biases are added up"
    told = (*Rewrite.said, ("cost", "without its"), ("evaluation", "without its"))
    structure = partial(Rewrite, leave=("training", "step", "count", "constraint", "penalty"), said=told)
    return {
        "accelerate": Rewrite(rewrite.accelerate, said=(*Rewrite.said, ("count", added_up), ("step", added_up))),
        "fuse": Rewrite(rewrite.fuse),
        "fold_batch_norm": structure(rewrite.fold_batch_norm),
        **{f"to_form {form}": Rewrite(partial(rewrite.to_form, form=form)) for form in "abc"},
        "grouped_to_dense": structure(rewrite.grouped_to_dense),
        "separable_to_dense": structure(rewrite.separable_to_dense),
        "dense_to_separable": structure(partial(rewrite.dense_to_separable, rank=9)),
        "dense_to_grouped": structure(partial(rewrite.dense_to_grouped, groups=2)),
        "dense_to_grouped, near": Rewrite(
            partial(rewrite.dense_to_grouped, groups=2, approximate=True), (*_NUMBERS, *structure(None).leave)
        ),
    }


_NAMED = ("name", "value", "training", "saved", "attribute", "state")
"""Kinds of difference that may be due to a layer that is gone, as the report says."""
_NUMBERS = ("result", "value", "cost", "evaluation", "saved", "clone")


def failures(plan: Any, only: str = "", is_thorough: bool = False) -> Iterator[tuple[str, str]]:
    """Yield each rewrite of a drawn model, and of two in a row, with a difference that it may not make.

    Args:
        only: which rewrites; none for all. is_thorough: whether to save, clone and train after each, instead of after
            one of them.
    """
    from tests import meaning
    from tests.drawn_models import build
    from tests.observing import TRAINED

    model = build(plan)
    before = meaning.Observed(model)
    known = rewrites()
    pick = random.Random(f"turn {plan.seed}")
    turn, pair = pick.choice(list(known)), " > ".join(pick.choices(list(known), k=2))
    is_trained = is_thorough or BACKEND == "torch" or pick.random() < 0.3
    for names in [only] if only else [*known, pair]:
        leave = () if is_trained else tuple(TRAINED)
        for difference in _tried(plan, before, [known[name] for name in names.split(" > ")], names == turn, leave):
            yield names, difference
    for difference in before.changes():
        yield "(the old model)", difference


def _tried(plan: Any, before: Any, steps: list[Rewrite], is_thorough: bool, leave: Sequence[str]) -> Iterator[str]:
    """Yield what of a model's meaning rewrites, one after the other, lose without a word."""
    from groupwise.errors import UserError
    from groupwise.rewrite import report_of
    from tests import meaning

    rewritten, gone, told = before.subject.model, set(), ""
    for step in steps:
        try:
            rewritten = step.call(rewritten)
        except UserError as error:
            if not _may_refuse(plan, str(error)):
                yield f"refused: {error}"
            return
        except Exception as error:
            yield f"crash: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
            return
        report = report_of(rewritten)
        gone |= {each.layer for each in report.gone}
        told += f"{report}\n"
        leave = (*leave, *step.leave, *(kind for kind, word in step.said if word in told))
    if f"class {type(before.subject.model).__name__} became" in told or "a RewrittenNetwork now" in told:
        leave = (*leave, "class", "attribute", "saved", "saved flags")
    for difference in meaning.compare(before, rewritten, is_thorough, leave):
        kind, place, *_ = difference.split(": ")
        if kind not in _NAMED or place.split(" ")[0] not in gone:
            yield difference
    kept = {id(part) for part in _parts(before.subject.model)}
    yield from (f"shared: {part.name}" for part in _parts(rewritten) if id(part) in kept)


def _parts(model: Any) -> list[Any]:
    """Return a model's layers and variables, at any depth."""
    return [*model._flatten_layers(), *model.variables]


def _may_refuse(plan: Any, message: str) -> bool:
    return "can be made grouped" in message or (plan.shell == "calibrated" and "Calibrated" in message)


def shrunk(plan: Any, name: str, kind: str) -> Any:
    """Return the least plan of which a rewrite still makes a difference of a kind."""
    from tests.drawn_models import smaller

    def still(less: Any) -> bool:
        try:
            return any(difference.split(":")[0] == kind for _, difference in failures(less, name, True))
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
    parser.add_argument("--backend", action="append", choices=FRAMEWORKS, help="only this one (repeatable)")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return run(options.count, options.seed, options.shrink)
    status = 0
    for backend in options.backend or FRAMEWORKS:
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
