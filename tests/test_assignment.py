"""Rows divided among groups, against every division and against SciPy's assignment."""

from itertools import permutations

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from groupwise.rewrite.assignment import assign

pytestmark = pytest.mark.once


def total(gains: np.ndarray, places: np.ndarray) -> float:
    rows, groups = gains.shape
    assert np.bincount(places, minlength=groups).tolist() == [rows // groups] * groups
    return float(gains[np.arange(rows), places].sum())


@pytest.mark.parametrize("seed", range(20))
def test_no_division_of_six_rows_gains_more(seed: int) -> None:
    # Small whole numbers: many divisions gain the same.
    gains = np.random.default_rng(seed).integers(0, 4, (6, 3)).astype(float)
    best = max(
        sum(gains[row, place] for row, place in enumerate(places)) for places in permutations([0, 0, 1, 1, 2, 2])
    )
    assert total(gains, assign(gains)) == best


@pytest.mark.parametrize(("rows", "groups"), [(1, 1), (8, 8), (64, 4), (64, 32), (96, 96), (512, 32)])
@pytest.mark.parametrize("kind", ["random", "one favourite", "equal", "huge"])
def test_gains_as_much_as_scipys_assignment(rows: int, groups: int, kind: str) -> None:
    gains = np.random.default_rng(rows + groups).random((rows, groups))
    if kind == "one favourite":
        gains[:, 0] += 1
    elif kind == "equal":
        gains[:] = 1 / 3
    elif kind == "huge":
        gains = np.exp(40 * gains)
    repeated = np.repeat(gains, rows // groups, axis=1)
    best = repeated[linear_sum_assignment(repeated, maximize=True)].sum()
    np.testing.assert_allclose(total(gains, assign(gains)), best, rtol=1e-9)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_gains_that_are_not_finite_are_refused(value: float) -> None:
    gains = np.ones((8, 2))
    gains[3, 0] = value
    with pytest.raises(ValueError, match="not all finite numbers"):
        assign(gains)
