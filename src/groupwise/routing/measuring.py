"""Which algorithm is the fastest here: rivals in turns."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

from groupwise.errors import UserError
from groupwise.routing import tuning
from groupwise.routing.lists import Runtime, candidates, explain, kind
from groupwise.routing.tuning import Choice
from groupwise.spec import ConvSpec, symmetric_padding
from groupwise.timing import Clock, Work, rounds, seconds

ROUNDS = (5, 25)  # at least, and at most
ENOUGH = 0.6  # seconds of rounds after which no more are begun
HOPELESS = 4.0  # times slower than another: measured no further

# Height and width, input channels, output channels, groups, kernel, stride: of our networks, two of each kind.
SUBJECTS = (
    (56, 64, 64, 1, 3, 1),
    (14, 256, 256, 1, 3, 1),
    (56, 128, 256, 1, 1, 1),
    (14, 1024, 512, 1, 1, 1),
    (28, 512, 512, 32, 3, 1),
    (7, 1024, 1024, 32, 3, 1),
    (56, 128, 128, 32, 3, 1),
    (28, 256, 256, 32, 3, 1),
    (28, 240, 60, 3, 1, 1),
    (14, 120, 480, 3, 1, 1),
    (56, 128, 128, 128, 3, 1),
    (14, 512, 512, 512, 3, 1),
    (56, 128, 128, 128, 3, 2),
    (14, 512, 512, 512, 3, 2),
)


def subjects(batch_size: int) -> dict[str, list[ConvSpec]]:
    """Return every kind of convolution and what stands for it."""
    named: dict[str, list[ConvSpec]] = {}
    for size, in_channels, out_channels, groups, kernel, stride in SUBJECTS:
        spec = ConvSpec.of(
            (batch_size, size, size, in_channels),
            (kernel, kernel, in_channels // groups, out_channels),
            groups,
            stride,
            symmetric_padding(kernel),
        )
        named.setdefault(kind(spec), []).append(spec)
    return named


@tuning.ignored()
def choose(
    specs: Sequence[ConvSpec], runtime_of: Callable[[], Runtime], step: Callable[[str, ConvSpec], Work]
) -> Choice:
    """Measure what can run all of `specs`, which are of one kind and whose sizes are known, and return the choice.

    What is hopelessly slow for one of them is left out.

    Args:
        specs: the convolutions, one at least. runtime_of: says where they run.
        step: returns a function that runs an algorithm and its gradients once: `ops.algorithms.training_step`.

    Raises:
        UserError: the framework runs on an accelerator, where the routing list has one row.
        ValueError: there is no convolution.
    """
    if not specs:
        raise ValueError("specs=[]: there is nothing to measure; give one convolution at least")
    runtime = runtime_of()
    if runtime.device != "cpu":
        raise UserError(f"{runtime.framework} runs on a {runtime.place} here; only CPUs have something to choose from")
    built_in = explain(specs[0], runtime).algorithm  # that of all of one kind
    ratios: list[Mapping[str, float]] = []
    for spec in specs:
        names = sorted(candidates(spec, runtime), key=lambda name: name != built_in)
        ratios.append(race({name: step(name, spec) for name in names}))
    finished = [name for name in ratios[0] if all(name in each for each in ratios)]
    return Choice.of({name: statistics.geometric_mean(each[name] for each in ratios) for name in finished}, built_in)


def race(rivals: Mapping[str, Work], clock: Clock = time.perf_counter) -> dict[str, float]:
    """Return how long each rival takes over the first: the median over rounds in which all take turns.

    Args:
        rivals: functions that do the work once and wait for it; the first call of each may compile, and is not timed.
            One that then takes over HOPELESS times as long as the fastest is left out, but never the first.
        clock: the seconds.
    """
    first_times: dict[str, float] = {}
    for name, run in rivals.items():
        run()
        first_times[name] = seconds(run, clock)
    bound = HOPELESS * min(first_times.values())
    favourite = next(iter(rivals))
    racing = [name for name, first in first_times.items() if first <= bound or name == favourite]
    taken: list[list[float]] = []
    begin = clock()
    for times in rounds([rivals[name] for name in racing], clock):
        taken.append(times)
        if len(taken) >= ROUNDS[0] and (len(taken) >= ROUNDS[1] or clock() - begin >= ENOUGH):
            break
    return {name: statistics.median(times[place] / times[0] for times in taken) for place, name in enumerate(racing)}
