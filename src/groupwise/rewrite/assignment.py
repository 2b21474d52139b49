"""Which rows go to which of several groups of one size, for the largest sum of gains."""

import numpy as np


def assign(gains: np.ndarray) -> np.ndarray:
    """Return the group of each row, so that all groups get as many rows and no other division gains more.

    Every row starts in the group where it gains most. Then one row after the other leaves a group that has too many,
    by the way that costs least: from group to group, each of which passes another of its rows on, to one that has too
    few (successive shortest paths: Ahuja, Magnanti and Orlin, Network Flows, section 9.7).

    Args:
        gains: (rows, groups), finite, the rows a multiple of the groups.

    Raises:
        ValueError: a gain is infinite or not a number.

    Examples:
        >>> assign(np.array([[5.0, 4.0], [9.0, 1.0]])).tolist()
        [1, 0]
    """
    if not np.isfinite(gains).all():
        raise ValueError("the weights are not all finite numbers: there is no best division of such")
    rows, groups = gains.shape
    places = gains.argmax(axis=1)
    costs = np.stack([_costs(gains, places, group) for group in range(groups)])
    while True:
        excess = np.bincount(places, minlength=groups) - rows // groups
        if not excess.any():
            return places
        path = _cheapest_path(costs, excess)
        # From the path's end, so that no row moves twice.
        for source, target in zip(path[-2::-1], path[:0:-1], strict=True):
            members = np.flatnonzero(places == source)
            places[members[(gains[members, source] - gains[members, target]).argmin()]] = target
        for group in path:
            costs[group] = _costs(gains, places, group)


def _costs(gains: np.ndarray, places: np.ndarray, group: int) -> np.ndarray:
    """Return what it costs to move the cheapest row of a group to each group: infinite where it has none."""
    members = gains[places == group]
    return (members[:, [group]] - members).min(axis=0, initial=np.inf)


def _cheapest_path(costs: np.ndarray, excess: np.ndarray) -> list[int]:
    """Return the cheapest way, by Bellman and Ford, from a group with too many rows to one with too few."""
    groups = len(excess)
    distances = np.where(excess > 0, 0.0, np.inf)
    before = np.full(groups, -1)
    # No cycle of moves gains anything, but where rounding makes it so.
    tolerance = 1e-12 * np.abs(costs[np.isfinite(costs)]).max(initial=0.0)
    for _ in range(groups):
        through = distances[:, None] + costs
        nearest = through.argmin(axis=0)
        reached = through[nearest, np.arange(groups)]
        better = reached < distances - tolerance
        if not better.any():
            break
        distances[better], before[better] = reached[better], nearest[better]
    path = [int(np.where(excess < 0, distances, np.inf).argmin())]
    while before[path[0]] >= 0:
        path.insert(0, int(before[path[0]]))
    return path
