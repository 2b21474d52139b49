"""The one timer: what is compared takes turns, so that a noisy machine disturbs all of it alike."""

import time
from collections.abc import Callable, Iterator, Sequence

Work = Callable[[], object]
"""Does something once and waits until it is done."""
Clock = Callable[[], float]


def seconds(work: Work, clock: Clock = time.perf_counter) -> float:
    """Return how long `work` takes.

    Examples:
        >>> ticks = iter([1.0, 3.5])
        >>> seconds(lambda: None, lambda: next(ticks))
        2.5
    """
    start = clock()
    work()
    return clock() - start


def rounds(rivals: Sequence[Work], clock: Clock = time.perf_counter) -> Iterator[list[float]]:
    """Yield, for ever, the seconds of one more round, in which each rival takes its turn.

    Examples:
        >>> ticks = iter([0.0, 1.0, 1.0, 3.0])
        >>> next(rounds([lambda: None, lambda: None], lambda: next(ticks)))
        [1.0, 2.0]
    """
    while True:
        yield [seconds(work, clock) for work in rivals]
