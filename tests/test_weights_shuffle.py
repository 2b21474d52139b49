"""ShuffleNet's conventions: where orders of channels exchange them, and where none can."""

from pathlib import Path

import numpy as np
import pytest

from groupwise import models
from groupwise.errors import UserError
from groupwise.weights.channel_orders import Convention, exchange, reordered_groups
from tests.published import pytorchcv_file

CONVENTIONS = [Convention(shuffle, after) for shuffle in ("paper", "inverse") for after in (False, True)]


def unit(x: np.ndarray, scale: np.ndarray, kernel: np.ndarray, groups: int, convention: Convention) -> np.ndarray:
    """Return what follows a unit's first 1x1: a depthwise step (of one pixel), the shuffle in loops, a grouped 1x1."""
    n = len(x) // groups
    x = x if not convention.after_depthwise else x * scale
    shuffled = np.empty_like(x)
    for group in range(groups):
        for index in range(n):
            if convention.shuffle == "paper":
                shuffled[index * groups + group] = x[group * n + index]
            else:
                shuffled[group * n + index] = x[index * groups + group]
    x = shuffled if convention.after_depthwise else shuffled * scale
    kernels = np.split(kernel[0, 0], groups, axis=-1)
    return np.concatenate([part @ k for part, k in zip(np.split(x, groups), kernels, strict=True)])


@pytest.mark.once
@pytest.mark.parametrize("groups", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("n", [1, 2, 5, 6, 8, 12, 17, 20, 34])
def test_exchanged_units_compute_the_same_and_others_cannot(groups: int, n: int) -> None:
    generator = np.random.default_rng(0)
    channels = groups * n
    x, scale = generator.normal(size=(2, channels))
    kernel = generator.normal(size=(1, 1, n, 2 * groups))
    for source in CONVENTIONS:
        for target in CONVENTIONS:
            orders = exchange(groups, channels, source, target)
            if orders is None:
                # Counted: no order within the groups changes how many channels go from one to another.
                assert source.shuffle != target.shuffle
                counts = [[_count(groups, n, s, t) for s in range(groups)] for t in range(groups)]
                assert not np.array_equal(counts, np.transpose(counts))
                continue
            np.testing.assert_array_equal(orders.compress // n, np.arange(channels) // n)
            expected = unit(x, scale, kernel, groups, source)
            reordered = reordered_groups(kernel, orders.expand, groups)
            ours = unit(x[orders.compress], scale[orders.depthwise], reordered, groups, target)
            np.testing.assert_allclose(ours, expected, atol=1e-12)


def _count(groups: int, n: int, source: int, target: int) -> int:
    """Return how many of the paper's channels go from one group to another."""
    return sum((index * groups + source) // n == target for index in range(n))


@pytest.mark.once
def test_a_shuffle_that_the_weights_cannot_have_is_refused(tmp_path: Path) -> None:
    path = pytorchcv_file(tmp_path / "weights.npz", "shufflenet_g8_wd2")
    with pytest.raises(UserError, match=r'no order of channels makes up for it.*pass shuffle="paper"'):
        models.create("shufflenet_g8_wd2", weights=path, shuffle="inverse")
    assert models.create("shufflenet_v1_x0_5_g8", weights=path).architecture["shuffle"] == "paper"
