"""One rival of `benchmarks.models` in a process of its own: it builds, warms up, then runs a step for every line read.

Frameworks cannot share a process fairly (Keras has one backend, thread pools compete), so the parent starts one worker
for each rival, and asks them in turn. Every answer is one line: "ready", then seconds.
"""

import importlib
import json
import os
import sys
from collections.abc import Callable

import numpy as np

from benchmarks.peers import without_compiled_operations
from benchmarks.timing import timed

Step = Callable[[], object]


def keras_step(network: str, mode: str, batch: int, stock: bool, fold: bool = False) -> Step:
    """Return one step of our network on Keras's backend, perhaps folded, or of its twin made of stock Keras layers."""
    import keras

    from groupwise import models, rewrite
    from groupwise.layers import stock_twin

    model = models.create(network)
    if stock:
        model = keras.models.clone_model(model, clone_function=stock_twin)
    if fold:
        model = rewrite.fold_batch_norm(model)
    images, labels = _data(batch, model.input_shape[1], model.output_shape[1])
    if mode == "infer":
        return lambda: model.predict_on_batch(images)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), loss)
    return lambda: model.train_on_batch(images, labels)


def accelerated_step(network: str, batch: int, accelerated: bool) -> tuple[Step, str]:
    """Return one step of a stock Keras model, or of what `accelerate` makes of it and how far its outputs are off."""
    import keras

    from benchmarks.stock import SUBJECTS
    from groupwise import accelerate

    model, said = SUBJECTS[network](), ""
    images, labels = _data(batch, model.input_shape[1], model.output_shape[1])
    if accelerated:
        stock, model = model, accelerate(model)
        expected, found = (np.asarray(each.predict_on_batch(images[:1])) for each in (stock, model))
        said = f"{np.abs(found - expected).max() / np.abs(expected).max():.1e}"
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), loss)
    return (lambda: model.train_on_batch(images, labels)), said


def torch_step(network: str, mode: str, batch: int, library: str) -> Step:
    """Return one step of the peer's own PyTorch model in channels_last memory."""
    import torch

    with without_compiled_operations():
        if library == "timm":
            create = importlib.import_module("timm").create_model
        else:
            create = importlib.import_module("pytorchcv.model_provider").get_model
    model = create(network).to(memory_format=torch.channels_last)
    images, labels = _data(batch, 224, 1000)
    inputs = torch.from_numpy(images).permute(0, 3, 1, 2)
    targets = torch.from_numpy(labels)
    if mode == "infer":
        model.eval()

        def infer() -> object:
            with torch.inference_mode():
                return model(inputs).numpy()

        return infer
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    criterion = torch.nn.CrossEntropyLoss()
    model.train()

    def train() -> object:
        optimizer.zero_grad()
        loss = criterion(model(inputs), targets)
        loss.backward()
        optimizer.step()
        return loss.item()

    return train


def _data(batch: int, size: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    return random.normal(size=(batch, size, size, 3)).astype("float32"), random.integers(0, classes, batch)


def main() -> None:
    """Build the step that the first argument (JSON) names, warm it up, and run it for every line of input."""
    task = json.loads(sys.argv[1])
    library, said = task.pop("library"), ""
    if library in ("keras", "accelerated"):
        step, said = accelerated_step(task["network"], task["batch"], library == "accelerated")
    elif library in ("timm", "pytorchcv"):
        step = torch_step(task["network"], task["mode"], task["batch"], library)
    else:
        step = keras_step(
            task["network"], task["mode"], task["batch"], stock=library == "stock", fold=library == "folded"
        )
    # A compiled step is compiled by its first call; a slow rival is asked for no more than that.
    for _ in range(task["warm_up"]):
        step()
    print(f"ready {said}".strip(), flush=True)
    run = timed(step)
    for _ in sys.stdin:
        print(run(), flush=True)


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    main()
