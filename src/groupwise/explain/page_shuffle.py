"""The page on channel shuffle: how far a channel gets through grouped convolutions, with and without it."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from groupwise.explain.connectivity import Step, by_group, convolutions_to_mix, reach, shuffling, stack
from groupwise.explain.drawing import WIDTH, canvas, dots, heading, links, matrix, write
from groupwise.explain.examples import shuffled_channels
from groupwise.explain.page import table
from groupwise.report.style import FAINT

CHANNELS, GROUPS, DEPTH = 12, 3, 3
MOST_CHANNELS = 24  # more than that are too many lines for a phone


def make(name: str | None) -> tuple[dict[str, Any], dict[str, Figure]]:
    """Return the page's values and pictures; `name` is a ShuffleNet's of version 1, whose groups it then takes."""
    channels, groups = (CHANNELS, GROUPS) if name is None else shuffled_channels(name)
    drawn = channels if channels <= MOST_CHANNELS else groups * max(2, MOST_CHANNELS // groups)
    plain, mixed = (stack(drawn, groups, DEPTH, shuffle) for shuffle in (False, True))
    values = {
        "whole": channels,
        "width": channels // groups,
        "drawn": f"The pictures show {drawn} channels in as many groups; with" if drawn < channels else "With",
        "needed": convolutions_to_mix(channels, groups),
        "depth": DEPTH,
        "channels": drawn,
        "groups": groups,
        "n": drawn // groups,
        "last": plain[-1].share,
        "mixed": mixed[-1].share,
        "plain_shares": ", ".join(f"{step.share:.0%}" for step in _convolutions(plain)),
        "mixed_shares": ", ".join(f"{step.share:.0%}" for step in _convolutions(mixed)),
        "order": _order(drawn, groups),
        "inverse": _inverse(drawn, groups),
    }
    return values, {"shuffle_lines": _lines(plain, mixed, groups), "shuffle_matrix": _matrices(plain, mixed, groups)}


def _convolutions(steps: list[Step]) -> list[Step]:
    return [step for step in steps if step.name.startswith("convolution")]


def _order(channels: int, groups: int) -> str:
    order = reach(shuffling(groups), channels).argmax(axis=1).reshape(groups, -1)
    rows = [(f"group {group}", *map(str, places)) for group, places in enumerate(order)]
    head = ("place", *map(str, range(order.shape[1])))
    return table(f"Which input channel stands where after `channel_shuffle(x, {groups})`", head, rows)


def _inverse(channels: int, groups: int) -> str:
    """Return what the shuffle with the channels of a group in place of the groups does, found by running it."""
    right, inverse = (reach(shuffling(count), channels).astype(int) for count in (groups, channels // groups))
    text = f": it undoes `channel_shuffle(x, {groups})`" if (inverse @ right == np.eye(channels)).all() else ""
    return text + (" (and here it is the same one, since both numbers are equal)" if (inverse == right).all() else "")


def _lines(plain: list[Step], mixed: list[Step], groups: int) -> Figure:
    row, top = 0.52, 0.85
    start = top + (len(plain) - 1) * row + 0.55
    figure, axes = canvas(WIDTH, start + 0.62 + (len(mixed) - 1) * row + 0.25)
    channels = plain[0].alone.shape[0]
    left, right = 1.3, WIDTH - 0.2
    places = left + (np.arange(channels) + 0.5) * (right - left) / channels
    radius = min(0.12, 0.38 * (right - left) / channels)
    for steps, y, title in ((plain, top, "Without shuffle"), (mixed, start + 0.62, "With shuffle")):
        heading(axes, y - 0.6, title, f"at the end an output sees {steps[-1].share:.0%} of the inputs")
        for number, step in enumerate(steps):
            points, before = ([(float(x), y + at * row) for x in places] for at in (number, number - 1))
            write(axes, 0.15, y + number * row, step.name, 10.5, ha="left", color=FAINT)
            dots(axes, points, by_group(step.reached, groups), radius)
            if number:
                links(axes, step.alone, before, points, steps[number - 1].reached[:, 0])
    return figure


def _matrices(plain: list[Step], mixed: list[Step], groups: int) -> Figure:
    side, gap, left = 2.1, 0.3, 0.3
    figure, axes = canvas(WIDTH, 0.75 + DEPTH * (side + 0.55))
    channels = plain[0].alone.shape[0]
    owners = np.repeat(np.arange(groups), channels // groups)
    for column, (steps, title) in enumerate(((plain, "Without shuffle"), (mixed, "With shuffle"))):
        x = left + column * (side + gap)
        write(axes, x, 0.3, title, 12, ha="left", fontweight="bold")
        for row, step in enumerate(_convolutions(steps)):
            y = 0.95 + row * (side + 0.55)
            write(axes, x, y - 0.17, f"{step.name}: {step.share:.0%}", 10.5, ha="left", color=FAINT)
            matrix(axes, x, y, side, step.reached, owners)
    return figure
