"""One rival in a process of its own: it builds a step, warms it up, then runs it for a while for every line read.

Frameworks cannot share a process fairly (Keras has one backend, thread pools compete), so the parent (`rivals.py`)
starts one worker for each rival, and asks them in turn. Every answer is one line: first a `Start`, then seconds.
A turn begins with a step that does not count.
"""

import json
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import peers
from benchmarks.memory import with_growth
from benchmarks.timing import repeated, timed

Step = Callable[[], Any]

WARM_UP = 5  # steps; a step that is recorded or compiled is so after three
TURN = 0.5  # seconds: short steps are repeated, so that neither the clock nor a cold cache matters
CLASSES = 10  # of the labels; every network has as many


@dataclass(frozen=True)
class Task:
    """What a rival does.

    Attributes:
        backend: Keras's.
        library: whose network it is: "groupwise"; "folded", with its batch norms folded; "stock", its twin of stock
            Keras layers; "keras", one of `stock.SUBJECTS`; "accelerated", what `accelerate` makes of it; or one of
            `peers.PEERS`, which run in PyTorch itself; or "openvino", our network as OpenVINO runs it.
        network: its name there.
        training: whether a step trains (SGD with momentum) or infers.
        batch, size: images in a step and their height; None for the network's own height.
        precision: "float32" or "bfloat16", beside float32 weights.
        device: "cpu" or "gpu".
        compiled: whether a peer's network goes through `torch.compile`.
        warm_up: steps before any is measured.
    """

    backend: str
    library: str
    network: str
    training: bool = True
    batch: int = 16
    size: int | None = None
    precision: str = "float32"
    device: str = "cpu"
    compiled: bool = False
    warm_up: int = WARM_UP


@dataclass(frozen=True)
class Start:
    """How a rival started.

    Attributes:
        first, warm_up: seconds of its first step, and of all steps of the warm-up.
        difference: how far accelerated outputs are from the stock model's, over the largest; 0 for other rivals.
        memory: bytes that the process's memory grew by at most in the warm-up; 0 where that is not known.
    """

    first: float
    warm_up: float
    difference: float = 0.0
    memory: int = 0


def build(task: Task) -> tuple[Step, float]:
    """Return a task's step, which waits for its result, and the difference of a `Start`."""
    if task.library in peers.PEERS.values():
        return _peer_step(task), 0.0
    if task.library == "openvino":
        return _openvino_step(task), 0.0
    import keras

    model, difference = _keras_model(task)
    arrays: Any = _data(task.batch, model.input_shape[1])
    if task.device == "gpu":  # the peer's lie there, too
        arrays = [keras.ops.convert_to_tensor(array) for array in arrays]
    if not task.training:
        return partial(model.predict_on_batch, arrays[0]), difference
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), loss)
    return partial(model.train_on_batch, *arrays), difference


def _keras_model(task: Task) -> tuple[Any, float]:
    """Return a task's Keras model, and how far its outputs are off if it is accelerated."""
    import keras

    from benchmarks.stock import SUBJECTS
    from groupwise import accelerate, models, rewrite
    from groupwise.layers import stock_twin

    if task.library in ("keras", "accelerated"):
        model = SUBJECTS[task.network](task.size)
        return (model, 0.0) if task.library == "keras" else _accelerated(model, accelerate)
    shape = (task.size, task.size, 3) if task.size else None
    policy = "mixed_bfloat16" if task.precision == "bfloat16" else "float32"
    model = models.create(task.network, input_shape=shape, dtype=policy)
    if task.library == "stock":
        model = keras.models.clone_model(model, clone_function=stock_twin)
    return (rewrite.fold_batch_norm(model) if task.library == "folded" else model), 0.0


def _accelerated(stock: Any, accelerate: Callable[[Any], Any]) -> tuple[Any, float]:
    model = accelerate(stock)
    image = _data(1, model.input_shape[1])[0]
    expected, found = (np.asarray(each.predict_on_batch(image)) for each in (stock, model))
    return model, float(np.abs(found - expected).max() / np.abs(expected).max())


def _peer_step(task: Task) -> Step:
    """Return a step of a peer's network in channels_last memory."""
    import torch

    device = "cuda" if task.device == "gpu" else "cpu"
    torch.backends.cudnn.benchmark = True
    network = peers.create(task.library, task.network).to(device, memory_format=torch.channels_last)
    network.train(task.training)
    if task.compiled:
        network = torch.compile(network)
    size = task.size or (32 if task.library == "plain" else 224)
    images, labels = (torch.from_numpy(array).to(device) for array in _data(task.batch, size))
    inputs = images.permute(0, 3, 1, 2)
    autocast = partial(torch.autocast, device, torch.bfloat16, enabled=task.precision == "bfloat16")

    def infer() -> np.ndarray:
        with torch.inference_mode(), autocast():
            return network(inputs).float().cpu().numpy()

    optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9)
    criterion = torch.nn.CrossEntropyLoss()

    def train() -> float:
        optimizer.zero_grad()
        with autocast():
            loss = criterion(network(inputs), labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    return train if task.training else infer


def _openvino_step(task: Task) -> Step:
    """Return inference of our network by OpenVINO, in float32, as it is fastest for one request at a time."""
    import openvino

    from groupwise.export import export_model

    with tempfile.TemporaryDirectory() as folder:
        path = export_model(task.network, Path(folder) / "network.xml", "openvino").path
        model = openvino.Core().read_model(str(path))
    settings = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": 2}
    compiled = openvino.Core().compile_model(model, "CPU", settings)
    images, _ = _data(task.batch, compiled.inputs[0].partial_shape[1].get_length())
    return lambda: compiled(images)[0]


def _data(batch: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    return random.normal(size=(batch, size, size, 3)).astype("float32"), random.integers(0, CLASSES, batch)


def check_gpu() -> None:
    """Raise SystemExit unless Keras's backend computes on a GPU."""
    import keras

    place = str(keras.ops.zeros(1).device).lower()
    if "gpu" not in place and "cuda" not in place:
        raise SystemExit(f"{keras.backend.backend()} sees no GPU here; it computes on {place}")


def main() -> None:
    """Build the step of the task that the first argument (JSON) is, warm it up, and run it for every line of input."""
    task = Task(**json.loads(sys.argv[1]))
    if task.device == "gpu":
        check_gpu()
    step, difference = build(task)
    seconds, memory = with_growth(lambda: [timed(step)() for _ in range(task.warm_up)])
    print(json.dumps(asdict(Start(seconds[0], sum(seconds), difference, memory))), flush=True)
    turn = repeated(step, min(seconds), TURN)
    for _ in sys.stdin:
        # A machine that is a guest gives what a resting process has freed back to its host: the first step of a turn of
        # ResNeXt-50 took 0.75 s longer on JAX, 0.4 s on PyTorch. Whoever trains does not rest.
        step()
        print(turn(), flush=True)


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    main()
