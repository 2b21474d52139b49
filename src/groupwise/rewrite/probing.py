"""What a piece of a model does to channels, found by running it: however it is written, the numbers tell."""

from collections.abc import Sequence

import keras
import numpy as np

from groupwise.running.graph import Graph, Node, Tensor, is_weightless, run

MOST_CALLS = 4096  # of a piece: split, one by one, and added up again
ANY_SIZE = (3, 4)  # an image's, where the model leaves it open


def image_size(tensor: Tensor) -> tuple[int, int]:
    """Return the height and width to try an NHWC tensor with."""
    height, width = (size or any_size for size, any_size in zip(tensor.shape[1:3], ANY_SIZE, strict=True))
    return height, width


def pieces_after(graph: Graph, tensor: Tensor) -> list[tuple[list[Node], Tensor]]:
    """Return the pieces without weights that begin with a tensor, the smallest first: calls, and their one result.

    Nothing outside a piece reads what it makes but the result, an image of the tensor's height and width.
    """
    found: list[tuple[list[Node], Tensor]] = []
    inside: list[Node] = []
    made = {id(tensor): tensor}
    while len(inside) < MOST_CALLS:
        taken = {id(node) for node in inside}
        waiting = [node for made_here in made.values() for node in graph.readers(made_here) if id(node) not in taken]
        if not waiting:
            break
        node = min(waiting, key=lambda node: graph.place[id(node)])
        if not is_weightless(node.operation) or any(id(read) not in made for read in node.input_tensors):
            break
        inside.append(node)
        made |= {id(output): output for output in node.outputs}
        taken.add(id(node))
        open_ends = [
            t for t in made.values() if graph.is_result(t) or any(id(n) not in taken for n in graph.readers(t))
        ]
        if len(open_ends) == len(node.outputs) == 1 and _is_image(open_ends[0], tensor):
            found.append((list(inside), open_ends[0]))
    return found


def sums(nodes: Sequence[Node], start: Tensor, end: Tensor) -> np.ndarray | None:
    """Return which input channels each output channel is the sum of, at the same pixel; None where it is not that.

    Returns:
        bool, (channels of start, channels of end): every input channel is in one sum.
    """
    channels = start.shape[-1]
    height, width = image_size(start)
    batch = -(-channels // (height * width))
    # One channel a pixel is 1: an image tells of as many channels as it has pixels.
    probe = np.zeros((batch * height * width, channels), "float32")
    probe[np.arange(channels), np.arange(channels)] = 1
    random = np.random.default_rng(0).normal(size=(1, height, width, channels)).astype("float32")
    try:
        found = _run(nodes, start, end, probe.reshape(batch, height, width, channels))
        matrix = found.reshape(-1, end.shape[-1])[:channels]
        trial = _run(nodes, start, end, random)
    except Exception:  # a piece may demand anything, such as one size of the batch: it is then not of our kind
        return None
    is_sum = np.isin(matrix, (0, 1)).all() and (matrix.sum(axis=1) == 1).all()
    if not is_sum or not np.allclose(trial, random @ matrix, rtol=1e-4, atol=1e-4):
        return None
    return matrix.astype(bool)


def selection(node: Node, start: Tensor, end: Tensor) -> np.ndarray | None:
    """Return which channels of `start`, in order, a call hands out as `end`; None where it does something else."""
    channels = start.shape[-1]
    shape = (1, *image_size(start), channels)
    numbers = np.broadcast_to(np.arange(channels, dtype="float32"), shape)
    random = np.random.default_rng(0).normal(size=shape).astype("float32")
    try:
        found = _run([node], start, end, numbers)
        trial = _run([node], start, end, random)
    except Exception:  # as above
        return None
    if found.ndim != 4 or not np.isin(found, numbers).all():
        return None
    order = found[0, 0, 0].astype(int)
    return order if trial.shape == (*shape[:3], len(order)) and np.array_equal(trial, random[..., order]) else None


def _run(nodes: Sequence[Node], start: Tensor, end: Tensor, value: np.ndarray) -> np.ndarray:
    result: np.ndarray = run(nodes, {id(start): keras.ops.convert_to_tensor(value, start.dtype)}, end)
    return result.astype("float32")


def _is_image(tensor: Tensor, like: Tensor) -> bool:
    return len(tensor.shape) == 4 and tensor.shape[1:3] == like.shape[1:3] and tensor.shape[-1] is not None
