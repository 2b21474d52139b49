"""The page on channel shuffle: how far a channel gets through grouped convolutions, with and without it."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from groupwise.errors import UserError
from groupwise.explain.connectivity import Step, by_group, convolutions_to_mix, reach, shuffling, stack
from groupwise.explain.drawing import WIDTH, Drawing, middles
from groupwise.layers import ChannelShuffle, GroupedConv2D
from groupwise.models import create
from groupwise.models.network import without_values
from groupwise.report.html_page import table

CHANNELS, GROUPS, DEPTH = 12, 3, 3
MOST_CHANNELS = 24  # more than that are too many lines for a phone

Stacks = dict[str, list[Step]]


def make(name: str | None) -> tuple[dict[str, Any], dict[str, Figure]]:
    """Return the page's values and pictures; `name` is a ShuffleNet's of version 1, whose groups it then takes."""
    whole, groups = (CHANNELS, GROUPS) if name is None else shuffled_channels(name)
    channels = whole if whole <= MOST_CHANNELS else groups * max(2, MOST_CHANNELS // groups)
    plain, mixed = (stack(channels, groups, DEPTH, shuffle) for shuffle in (False, True))
    stacks = {"Without shuffle": plain, "With shuffle": mixed}
    values = {
        "whole": whole,
        "width": whole // groups,
        "drawn": f"The pictures show {channels} channels in as many groups; with" if channels < whole else "With",
        "needed": convolutions_to_mix(whole, groups),
        "channels": channels,
        "groups": groups,
        "n": channels // groups,
        "plain": [step.share for step in _convolutions(plain)],
        "mixed": [step.share for step in _convolutions(mixed)],
        "order": _order(channels, groups),
        "inverse": _inverse(channels, groups),
    }
    return values, {"shuffle_lines": _lines(stacks, groups), "shuffle_matrix": _matrices(stacks, groups)}


def shuffled_channels(name: str) -> tuple[int, int]:
    """Return how many channels the first shuffle of a ShuffleNet has, and its groups.

    Raises:
        UserError: there is no such network, or it shuffles nothing between grouped convolutions.
    """
    with without_values():
        grouped = [layer for layer in create(name).layers if getattr(layer, "groups", 1) > 1]
    shuffles = [layer for layer in grouped if isinstance(layer, ChannelShuffle)]
    if not shuffles or not any(isinstance(layer, GroupedConv2D) for layer in grouped):
        raise UserError(
            f"model {name!r}: has no channel shuffle between grouped convolutions; take a ShuffleNet v1 such as "
            "shufflenet_g3_w1"
        )
    return int(shuffles[0].input.shape[-1]), int(shuffles[0].groups)


def _convolutions(steps: list[Step]) -> list[Step]:
    return [step for step in steps if step.name.startswith("convolution")]


def _order(channels: int, groups: int) -> str:
    order = reach(shuffling(groups), channels).argmax(axis=1).reshape(groups, -1).tolist()
    rows = [(f"group {group}", *places) for group, places in enumerate(order)]
    caption = f"Which input channel stands where after <code>channel_shuffle(x, {groups})</code>"
    return table(caption, ("place", *range(channels // groups)), rows)


def _inverse(channels: int, groups: int) -> str:
    """Return what the shuffle with the channels of a group in place of the groups does, found by running it."""
    right, inverse = (reach(shuffling(count), channels).astype(int) for count in (groups, channels // groups))
    undoes = f": it undoes <code>channel_shuffle(x, {groups})</code>"
    same = " (and here it is the same one, since both numbers are equal)"
    return (undoes if (inverse @ right == np.eye(channels)).all() else "") + (same if (inverse == right).all() else "")


def _lines(stacks: Stacks, groups: int) -> Figure:
    row, y = 0.52, 0.85
    drawing = Drawing(height=1.23 + row * sum(map(len, stacks.values())))
    for title, steps in stacks.items():
        drawing.heading(y - 0.6, title, f"at the end an output sees {steps[-1].share:.0%} of the inputs")
        places = middles(1.3, WIDTH - 1.5, len(steps[0].reached))
        for number, step in enumerate(steps):
            drawing.note(0.15, y, step.name)
            drawing.dots(places, y, by_group(step.reached, groups), min(0.12, 0.38 * (places[1] - places[0])))
            if number:
                drawing.links(places, (y - row, y), step.alone, strong=steps[number - 1].reached[:, 0])
            y += row
        y += 0.65
    return drawing.figure


def _matrices(stacks: Stacks, groups: int) -> Figure:
    side, row = 2.1, 2.65
    drawing = Drawing(height=0.75 + DEPTH * row)
    for x, (title, steps) in zip((0.3, 2.7), stacks.items(), strict=True):
        drawing.heading(0.3, title, x=x)
        for number, step in enumerate(_convolutions(steps)):
            y = 0.95 + number * row
            drawing.note(x, y - 0.17, f"{step.name}: {step.share:.0%}")
            drawing.matrix(x, y, side, step.reached, groups)
    return drawing.figure
