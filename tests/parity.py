"""Published networks against their publishers' own code: `python -m tests.parity [--quick] [--backend NAME] [PATTERN]`.

Each case builds the publisher's network with random weights and batch norm statistics, writes them to a file, reads
that with `groupwise.models.create(weights=)`, and compares logits and stages at two image sizes, one of them odd. The
command runs the cases on every backend and prints a table; --output writes it to a file (docs/parity.md).
"""

import argparse
import fnmatch
import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from groupwise.frameworks import FRAMEWORKS
from tests.parity_cases import CASES, Case

TOLERANCE = 1e-4
SIZES = (64, 75)
LAST_NORMS = {
    ("resnet18", "resnet34", "seresnet18", "seresnet34"): (".bn2", "conv2.bn"),
    ("resn", "seres", "senet", "eff", "tf_eff"): (".bn3", "conv3.bn", "._bn2"),
}
"""How networks' names begin, and how the last batch norms of their residual branches end; the first row that fits."""


class TorchPeer:
    """A publisher's network in PyTorch, for images of any size, with random weights, ready for inference."""

    def __init__(self, case: Case) -> None:
        from tests.peers import randomise

        self._case = case
        self._network = randomise(_torch_network(case))
        endings = next((ends for names, ends in LAST_NORMS.items() if case.name.startswith(names)), ())
        for path, module in self._network.named_modules():
            if path.endswith(endings):
                # Else the blocks' sums grow, the gates saturate, and PyTorch's float32 is far from its own float64.
                module.weight.data.mul_(0.3)

    def write(self, folder: Path) -> Path:
        """Write the weights as the publisher does: timm in safetensors, the others in PyTorch's own files."""
        import torch
        from safetensors.torch import save_file

        path = folder / self._case.peer
        if self._case.publisher == "timm":
            save_file(self._network.state_dict(), path.with_suffix(".safetensors"))
            return path.with_suffix(".safetensors")
        if self._case.publisher == "tensorpack":
            from tests import tensorpack

            return tensorpack.write(self._network, path.with_suffix(".npz"))
        prefix = "module." if self._case.publisher == "megvii" else ""
        state = {f"{prefix}{key}": value for key, value in self._network.state_dict().items()}
        torch.save({"state_dict": state} if prefix else state, path.with_suffix(".pth"))
        return path.with_suffix(".pth")

    def outputs(self, images: Any) -> dict[str, Any]:
        """Return the logits and stages, channels last, for images (batch, height, width, 3)."""
        import torch

        outputs: dict[str, Any] = {}

        def keep(name: str) -> Callable[..., None]:
            # Cloned, since a later activation in place would change it.
            return lambda _module, _inputs, output: outputs.setdefault(name, output.detach().clone())

        if self._case.publisher in ("megvii", "tensorpack"):
            # They were trained on blue, green and red, in this order.
            images = images[..., ::-1]
        stages = self._case.stages.items()
        hooks = [self._network.get_submodule(path).register_forward_hook(keep(name)) for name, path in stages]
        with torch.no_grad():
            logits = self._network(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
        for hook in hooks:
            hook.remove()
        maps = {name: tensor.numpy().transpose(0, 2, 3, 1) for name, tensor in outputs.items()}
        return {**maps, "logits": logits.numpy()}


def _torch_network(case: Case) -> Any:
    import torch

    from benchmarks.peers import without_compiled_operations

    if case.publisher in ("megvii", "tensorpack"):
        from tests import megvii, tensorpack

        _, size, *groups = case.peer.split("_")
        if case.publisher == "tensorpack":
            return tensorpack.Network(int(groups[0][1:]), float(size[1:]))
        return megvii.Network(size[1:], int(groups[0][1:]) if groups else None)

    with without_compiled_operations():
        if case.publisher == "timm":
            import timm

            return timm.create_model(case.peer, pretrained=False)
        if case.publisher == "torchvision":
            import torchvision.models

            return getattr(torchvision.models, case.peer)(weights=None)
        if case.publisher == "pytorchcv":
            from pytorchcv.model_provider import get_model

            peer = get_model(case.peer, pretrained=False)
            parent, name = (
                (peer.features.final_block, "pool") if case.name == "xception" else (peer.features, "final_pool")
            )
            setattr(parent, name, torch.nn.AdaptiveAvgPool2d(1))
            return peer
        from efficientnet_lite_pytorch import EfficientNet

        return EfficientNet.from_name(case.peer, image_size=None)


class KerasPeer:
    """keras.applications' ResNeXt, likewise."""

    def __init__(self, case: Case) -> None:
        import keras

        from tests import keras_applications

        self._case = case
        name, groups = case.peer.split("_c")
        network = keras_applications.resnext(name, int(groups))
        keras_applications.randomise(network)
        layers = {name: network.get_layer(layer).output for name, layer in case.stages.items()}
        self._network = keras.Model(network.input, {**layers, "logits": network.output})

    def write(self, folder: Path) -> Path:
        """Write the weights as Keras 2 did."""
        from tests import keras_applications

        return keras_applications.write(self._network, folder / f"{self._case.peer}.h5")

    def outputs(self, images: Any) -> dict[str, Any]:
        """Return the logits and stages for images (batch, height, width, 3)."""
        import keras

        outputs = self._network(images, training=False)
        return {name: keras.ops.convert_to_numpy(value) for name, value in outputs.items()}


def difference(case: Case, sizes: Sequence[int] = SIZES) -> float:
    """Return the largest difference of logits and stages, each over the largest value of it."""
    import keras
    import numpy as np

    from groupwise import models

    peer = KerasPeer(case) if case.publisher == "keras.applications" else TorchPeer(case)
    shape = (None, None, 3)
    with tempfile.TemporaryDirectory() as folder:
        path = peer.write(Path(folder))
        model = models.create(case.name, weights=path, input_shape=shape)
        parts = models.create(case.name, weights=path, input_shape=shape, features=tuple(case.stages))
    largest = 0.0
    for size in sizes:
        images = np.random.default_rng(size).normal(size=(2, size, size, 3)).astype("float32")
        outputs = {**parts(images, training=False), "logits": model(images, training=False)}
        for name, values in peer.outputs(images).items():
            ours = keras.ops.convert_to_numpy(outputs[name])
            assert ours.shape == values.shape, f"{case.label}: {name} is {ours.shape}, not {values.shape}"
            assert np.abs(values).max() > 1e-3, f"{case.label}: {name} is all but zero"
            largest = max(largest, float(np.abs(ours - values).max() / np.abs(values).max()))
    return largest


def _work(cases: Sequence[Case]) -> int:
    """Print a line of JSON for each case: what a worker process, on one backend, tells the one that started it."""
    for case in cases:
        try:
            result: dict[str, Any] = {"case": case.label, "difference": difference(case)}
        except Exception as error:  # the table says which case failed, and the others still run
            result = {"case": case.label, "error": f"{type(error).__name__}: {error}"}
        print(json.dumps(result), flush=True)
        gc.collect()
    return 0


def _run(backend: str, arguments: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return each case's result on a backend, printing them as they come."""
    environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "1"}
    command = [sys.executable, "-m", "tests.parity", "--worker", *arguments]
    results = {}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("{"):
                result = json.loads(line)
                results[result["case"]] = result
                print(f"{backend:10} {result['case']:64} {_cell(result)}", flush=True)
    return results


def _cell(result: Mapping[str, Any] | None) -> str:
    if result is None:
        return "not run"
    return f"{result['difference']:.1e}" if "difference" in result else result["error"]


def _table(results: Mapping[str, Mapping[str, Any]], cases: Sequence[Case]) -> str:
    from importlib.metadata import version

    packages = ("keras", "jax", "torch", "timm", "torchvision", "pytorchcv")
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    worst = max((r.get("difference", 1.0) for rows in results.values() for r in rows.values()), default=1.0)
    lines = [
        "# Parity with the publishers' own networks",
        "",
        "Random weights and batch norm statistics, written to a file by the publisher's code, read by",
        "`groupwise.models.create(weights=)`: the largest difference of logits and stages, over the largest value of",
        f"each, at {SIZES[0]}x{SIZES[0]} and {SIZES[1]}x{SIZES[1]} pixels. Written by",
        "`python -m tests.parity --output docs/parity.md`.",
        "",
        f"{len(cases)} networks; the largest difference is {worst:.1e}. {versions}.",
        "",
        f"| publisher | its network | ours | {' | '.join(results)} |",
        f"| --- | --- | --- |{' ---: |' * len(results)}",
    ]
    for case in cases:
        cells = " | ".join(_cell(results[backend].get(case.label)) for backend in results)
        lines.append(f"| {case.publisher} | `{case.peer}` | `{case.name}` | {cells} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the cases and print their table; the exit status is 1 where one differs by more than 1e-4."""
    parser = argparse.ArgumentParser(prog="python -m tests.parity", description=__doc__.splitlines()[0])
    parser.add_argument("pattern", nargs="?", default="*", help="which cases, as a shell pattern of PUBLISHER-NETWORK")
    parser.add_argument("--quick", action="store_true", help="only those of the quick suite")
    parser.add_argument("--backend", action="append", choices=FRAMEWORKS, help="only this one (repeatable)")
    parser.add_argument("--output", type=Path, help="a Markdown file for the table")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    cases = [
        case for case in CASES if fnmatch.fnmatch(case.label, options.pattern) and (case.quick or not options.quick)
    ]
    if options.worker:
        return _work(cases)
    passed_on = [options.pattern, *(["--quick"] if options.quick else [])]
    results = {backend: _run(backend, passed_on) for backend in options.backend or FRAMEWORKS}
    table = _table(results, cases)
    print(table)
    if options.output:
        options.output.write_text(table)
    differences = [rows.get(case.label, {}).get("difference", 1.0) for rows in results.values() for case in cases]
    return int(max(differences, default=1.0) > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
