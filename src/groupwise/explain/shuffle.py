"""The page on channel shuffle: how far a channel gets through grouped convolutions, with and without it."""

import numpy as np

from groupwise.errors import UserError
from groupwise.explain.connectivity import Step, by_group, convolutions_to_mix, reach, shuffling, stack
from groupwise.explain.drawing import WIDTH, canvas, dots, heading, links, matrix, write
from groupwise.explain.page import Code, Page, Picture, Section, Table
from groupwise.explain.texts import source_line
from groupwise.layers import ChannelShuffle, GroupedConv2D
from groupwise.models import create, find
from groupwise.models.network import without_values
from groupwise.report.style import FAINT

CHANNELS, GROUPS, DEPTH = 12, 3, 3
MOST_CHANNELS = 24  # more than that are too many lines for a phone

PROGRAM = """from keras import ops

def channel_shuffle(x, groups):
    _, height, width, channels = x.shape
    size = (-1, height, width)
    n = channels // groups
    x = ops.reshape(x, (*size, groups, n))
    # the line that matters
    x = ops.transpose(x, (0, 1, 2, 4, 3))
    return ops.reshape(x, (*size, channels))"""


def make(name: str | None) -> Page:
    """Return the page; `name` is a ShuffleNet's of version 1, whose groups and channels it then takes."""
    channels, groups = (CHANNELS, GROUPS) if name is None else shuffled_channels(name)
    drawn = channels if channels <= MOST_CHANNELS else groups * max(2, MOST_CHANNELS // groups)
    plain, mixed = (stack(drawn, groups, DEPTH, shuffle) for shuffle in (False, True))
    needed, last = convolutions_to_mix(channels, groups), plain[-1].share
    answer = (
        f"Grouped convolutions never mix their groups: however many follow each other, an output channel sees only its "
        f"own group's inputs, here {last:.0%} of them. A channel shuffle between them deals each group's channels out "
        f"to all groups. It has no weights and no arithmetic, and with it every output sees every input after "
        f"{needed} convolutions.",
        "To write it: reshape the channels to (groups, channels / groups), transpose these two axes, reshape back. "
        "`groupwise.ops.channel_shuffle(x, groups)` and `groupwise.layers.ChannelShuffle(groups)` do that.",
    )
    sections = [
        Section("Follow one channel", (_lines(plain, mixed, groups), _matrices(plain, mixed, groups))),
        Section("How to write it", (Code(PROGRAM), _order(drawn, groups), *_mistakes(drawn, groups))),
        Section(
            "Where it comes from",
            (
                "ShuffleNet, [arXiv 1707.01083](https://arxiv.org/abs/1707.01083), section 3.1 and figure 1. There it "
                "stands after the first grouped 1x1 convolution of every unit, before the depthwise 3x3.",
            ),
        ),
    ]
    if name is not None:
        sections.insert(0, Section(f"The example: {name}", (_about(name, channels, groups, drawn, needed),)))
    return Page(
        "shuffle",
        "What is channel shuffle for, and how do I write it?",
        answer,
        tuple(sections),
        source_line("shuffle", name),
    )


def shuffled_channels(name: str) -> tuple[int, int]:
    """Return how many channels the first shuffle of a ShuffleNet has, and its groups.

    Raises:
        UserError: there is no such network, or it shuffles nothing between grouped convolutions.
    """
    find(name)
    with without_values():
        layers = create(name).layers
    shuffles = [layer for layer in layers if isinstance(layer, ChannelShuffle) and layer.groups > 1]
    grouped = any(isinstance(layer, GroupedConv2D) and layer.groups > 1 for layer in layers)
    if not shuffles or not grouped:
        raise UserError(
            f"model {name!r}: has no channel shuffle between grouped convolutions; take a ShuffleNet v1 such as "
            "shufflenet_g3_w1"
        )
    return int(shuffles[0].input.shape[-1]), int(shuffles[0].groups)


def _about(name: str, channels: int, groups: int, drawn: int, needed: int | None) -> str:
    text = f"The first shuffle of `{name}` has {channels} channels in {groups} groups of {channels // groups}. "
    if drawn < channels:
        text += f"The pictures show {drawn} channels in as many groups; "
    return (
        text
        + f"with all {channels}, every output sees every input after {needed} convolutions (found by running them)."
    )


def _lines(plain: list[Step], mixed: list[Step], groups: int) -> Picture:
    row, top = 0.52, 0.85
    start = top + (len(plain) - 1) * row + 0.55
    figure, axes = canvas(WIDTH, start + 0.62 + (len(mixed) - 1) * row + 0.25)
    channels = plain[0].alone.shape[0]
    left, right = 1.3, WIDTH - 0.2
    places = left + (np.arange(channels) + 0.5) * (right - left) / channels
    radius = min(0.12, 0.38 * (right - left) / channels)
    for steps, y, title in ((plain, top, "Without shuffle"), (mixed, start + 0.62, "With shuffle")):
        seen = steps[-1].share
        heading(axes, y - 0.6, title, f"at the end an output sees {seen:.0%} of the inputs")
        for number, step in enumerate(steps):
            points = [(float(x), y + number * row) for x in places]
            write(axes, 0.15, y + number * row, step.name, 10.5, ha="left", color=FAINT)
            dots(axes, points, by_group(step.reached, groups), radius)
            if number:
                before = [(x, y + (number - 1) * row) for x, _ in points]
                links(axes, step.alone, before, points, steps[number - 1].reached[:, 0])
    alternative = (
        f"Two stacks of {DEPTH} grouped convolutions over {channels} channels in {groups} groups, drawn as dots and "
        f"lines. Without shuffle the lines stay inside each group, and every dot keeps one colour. With a shuffle "
        f"between the convolutions the lines spread, and at the end an output sees {mixed[-1].share:.0%} of the inputs."
    )
    caption = (
        "Each dot is a channel, its colours are the groups of inputs that have reached it. Dark lines: where the first "
        "input channel goes."
    )
    return Picture("shuffle_lines", figure, alternative, caption)


def _matrices(plain: list[Step], mixed: list[Step], groups: int) -> Picture:
    side, gap, left = 2.1, 0.3, 0.3
    figure, axes = canvas(WIDTH, 0.75 + DEPTH * (side + 0.55))
    channels = plain[0].alone.shape[0]
    owners = np.repeat(np.arange(groups), channels // groups)
    shares = []
    for column, (steps, title) in enumerate(((plain, "Without shuffle"), (mixed, "With shuffle"))):
        x = left + column * (side + gap)
        write(axes, x, 0.3, title, 12, ha="left", fontweight="bold")
        convolutions = [step for step in steps if step.name.startswith("convolution")]
        for row, step in enumerate(convolutions):
            y = 0.95 + row * (side + 0.55)
            write(axes, x, y - 0.17, f"{step.name}: {step.share:.0%}", 10.5, ha="left", color=FAINT)
            matrix(axes, x, y, side, step.reached, owners)
        shares.append(", ".join(f"{step.share:.0%}" for step in convolutions))
    alternative = (
        f"Matrices of which of {channels} inputs reach which of {channels} outputs after 1 to {DEPTH} convolutions. "
        f"Filled without shuffle: {shares[0]}. With shuffle: {shares[1]}."
    )
    caption = "Rows are outputs, columns are inputs. A cell is filled where the input changes the output."
    return Picture("shuffle_matrix", figure, alternative, caption)


def _order(channels: int, groups: int) -> Table:
    order = reach(shuffling(groups), channels).argmax(axis=1)
    n = channels // groups
    rows = [(f"group {group}", *(str(order[group * n + place]) for place in range(n))) for group in range(groups)]
    head = ("place", *map(str, range(n)))
    return Table(f"Which input channel stands where after `channel_shuffle(x, {groups})`", head, rows)


def _mistakes(channels: int, groups: int) -> tuple[str, ...]:
    n = channels // groups
    right, inverse = reach(shuffling(groups), channels), reach(shuffling(n), channels)
    undoes = bool((inverse.astype(int) @ right.astype(int) == np.eye(channels)).all())
    same = bool((inverse == right).all())
    return (
        "Two mistakes. Without the transposition the two reshapes undo each other, and nothing is shuffled. And "
        f"`channel_shuffle(x, {n})`, with the channels of a group in place of the number of groups, is the inverse "
        f"shuffle"
        + (": it undoes `channel_shuffle(x, " + f"{groups})`" if undoes else "")
        + (" (and here it is the same one, since both numbers are equal). " if same else ". ")
        + "It mixes as well when a network is trained from scratch, but weights trained with the one are wrong in the "
        "other.",
    )
