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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BACKENDS = ("tensorflow", "jax", "torch")
TOLERANCE = 1e-4
SIZES = (64, 75)
LAST_NORMS = ("bn3", "conv3.bn", "._bn2")
"""How the last batch norm of a residual branch is called."""

Stages = Mapping[str, str]
"""Our stage: the publisher's module whose output it is."""

RESIDUAL_STAGES = {f"stage{stage}": f"layer{stage}" for stage in range(1, 5)}
PYTORCHCV_STAGES = {f"stage{stage}": f"features.stage{stage}" for stage in range(1, 6)}
SHUFFLENET_STAGES = {"stem": "features.init_block", **dict(list(PYTORCHCV_STAGES.items())[:3])}
TORCHVISION_V2_STAGES = {
    "stem": "maxpool",
    "stage1": "stage2",
    "stage2": "stage3",
    "stage3": "stage4",
    "final": "conv5",
}


@dataclass(frozen=True)
class Case:
    """One of our networks, and one publisher's network that it is.

    Attributes:
        name: ours. publisher: timm, torchvision, pytorchcv, ...
        peer: the publisher's name of it.
        stages: what is compared beside the logits.
        quick: whether it belongs to the quick suite.
        classes: of the head, None for the network's own.
    """

    name: str
    publisher: str
    peer: str
    stages: Stages = field(repr=False)
    quick: bool = False
    classes: int | None = None

    @property
    def label(self) -> str:
        """A name for tests and tables."""
        return f"{self.publisher}-{self.peer}-{self.name}"


def _cases(publisher: str, stages: Stages, names: str, quick: str = "", prefix: str = "") -> list[Case]:
    """Return a case for every name, or pair OURS=THEIRS; `quick` lists those of the quick suite."""
    pairs = [(pair.split("=") * 2)[:2] for pair in names.split()]
    return [Case(ours, publisher, prefix + theirs, stages, theirs in quick.split()) for ours, theirs in pairs]


def _timm() -> list[Case]:
    light = {"stem": "bn1", **{f"stage{stage}": f"blocks.{stage - 1}" for stage in range(1, 8)}}
    mobile = {name: path for name, path in light.items() if name not in ("stage6", "stage7")}
    legacy = {"stem": "layer0", **RESIDUAL_STAGES}
    xception = {"stem": "act2", "stage1": "block1", "stage2": "block2", "stage3": "block11", "stage4": "block12"}
    return [
        *_cases(
            "timm",
            {"stem": "act1", **RESIDUAL_STAGES},
            "resnet18 resnet34 resnet50 resnet101 resnet152 resnext50_32x4d resnext101_32x4d resnext101_64x4d "
            "resnext101_32x8d resnext101_32x16d resnext101_32x32d seresnet18 seresnet34 seresnet50 seresnet101 "
            "seresnet152 seresnext50_32x4d seresnext101_32x4d seresnext101_64x4d seresnext101_32x8d senet154",
            quick="resnet18 seresnet18 seresnext50_32x4d",
        ),
        *_cases(
            "timm",
            legacy,
            "seresnet18 seresnet34 seresnet50 seresnet101 seresnet152 seresnext26_32x4d seresnext50_32x4d "
            "seresnext101_32x4d senet154",
            quick="seresnet50 seresnet18",
            prefix="legacy_",
        ),
        *_cases("timm", mobile, "mobilenetv1_100 mobilenetv1_100h mobilenetv1_125", quick="mobilenetv1_100h"),
        *_cases("timm", {**xception, "final": "act4"}, "xception=legacy_xception", quick="legacy_xception"),
        *_cases(
            "timm",
            {**light, "final": "bn2"},
            " ".join(f"{kind}efficientnet_lite{index}" for kind in ("", "tf_") for index in range(5)),
            quick="efficientnet_lite0 tf_efficientnet_lite0",
        ),
    ]


def _pytorchcv() -> list[Case]:
    bottom = {"stem": "features.init_block.conv", **dict(list(PYTORCHCV_STAGES.items())[:4])}
    cifar = {"stem": "features.init_block", **dict(list(PYTORCHCV_STAGES.items())[:3])}
    xception = {"stem": "features.init_block", **dict(list(PYTORCHCV_STAGES.items())[:4])}
    b_forms = " ".join(f"{kind}resnet{n}={kind}resnet{n}b" for kind in ("", "se") for n in (50, 101, 152))
    return [
        *_cases(
            "pytorchcv",
            bottom,
            "resnet18 resnet34 resnet50 resnet101 resnet152 seresnet18 seresnet34 seresnet50 seresnet101 seresnet152 "
            f"{b_forms} resnext14_16x4d resnext14_32x2d resnext14_32x4d resnext26_16x4d resnext26_32x2d "
            "resnext26_32x4d resnext38_32x4d resnext50_32x4d resnext101_32x4d resnext101_64x4d seresnext50_32x4d "
            "seresnext101_32x4d seresnext101_64x4d",
            quick="seresnet50b resnet50 resnext14_16x4d",
        ),
        *_cases(
            "pytorchcv",
            {**bottom, "stem": "features.init_block.conv3"},
            "senet16 senet28 senet40 senet52 senet103 senet154",
            quick="senet16",
        ),
        *_cases(
            "pytorchcv",
            cifar,
            "resnext20_16x4d_cifar10 resnext20_32x2d_cifar10 resnext20_32x4d_cifar10 resnext29_32x4d_cifar10 "
            "resnext29_16x64d_cifar10 resnext272_1x64d_cifar10 resnext272_2x32d_cifar10",
            quick="resnext20_16x4d_cifar10",
        ),
        Case("resnext20_16x4d_cifar10", "pytorchcv", "resnext20_16x4d_cifar100", cifar, classes=100),
        *_cases(
            "pytorchcv",
            SHUFFLENET_STAGES,
            "shufflenet_g1_w1 shufflenet_g2_w1 shufflenet_g3_w1 shufflenet_g4_w1 shufflenet_g8_w1 shufflenet_g1_w3d4 "
            "shufflenet_g3_w3d4 shufflenet_g1_wd2 shufflenet_g3_wd2 shufflenet_g1_wd4 shufflenet_g3_wd4",
            quick="shufflenet_g3_wd4",
        ),
        *_cases(
            "pytorchcv",
            {**SHUFFLENET_STAGES, "final": "features.final_block"},
            "shufflenetv2_wd2 shufflenetv2_w1 shufflenetv2_w3d2 shufflenetv2_w2 shufflenetv2b_wd2 shufflenetv2b_w1 "
            "shufflenetv2b_w3d2 shufflenetv2b_w2",
            quick="shufflenetv2_wd2 shufflenetv2b_wd2",
        ),
        *_cases(
            "pytorchcv",
            {"stem": "features.init_block", **PYTORCHCV_STAGES},
            "mobilenet_wd4 mobilenet_wd2 mobilenet_w3d4 mobilenet_w1",
            quick="mobilenet_wd4",
        ),
        *_cases("pytorchcv", {**xception, "final": "features.final_block.conv2"}, "xception"),
    ]


def _aligned_xception() -> list[Case]:
    """Return timm's aligned Xceptions; stages end with these blocks."""
    depths = {"xception41": (0, 1, 10, 11), "xception65": (0, 1, 18, 19), "xception71": (1, 3, 20, 21)}
    cases = []
    for name in ("xception41", "xception65", "xception71", "xception41p", "xception65p"):
        ends = {f"stage{stage}": f"blocks.{end}" for stage, end in enumerate(depths[name.removesuffix("p")], start=1)}
        cases += _cases("timm", {"stem": "stem", **ends, "final": "act"}, name, quick="xception41p")
    return cases


def _torchvision() -> list[Case]:
    return [
        *_cases(
            "torchvision",
            {"stem": "relu", **RESIDUAL_STAGES},
            "resnet18 resnet34 resnet50 resnet101 resnet152 resnext50_32x4d resnext101_32x8d resnext101_64x4d",
            quick="resnet18",
        ),
        *_cases(
            "torchvision",
            TORCHVISION_V2_STAGES,
            "shufflenet_v2_x0_5 shufflenet_v2_x1_0 shufflenet_v2_x1_5 shufflenet_v2_x2_0",
            quick="shufflenet_v2_x0_5",
        ),
    ]


def _lukemelas() -> list[Case]:
    """The blocks that end the stages, by their place in the whole network."""
    from groupwise.models.efficientnet import LITE, scaled_stages

    cases = []
    for index, lite in enumerate(LITE):
        depths = [stage.depth for stage in scaled_stages(lite.width, lite.depth)]
        stages = {f"stage{place + 1}": f"_blocks.{sum(depths[: place + 1]) - 1}" for place in range(len(depths))}
        cases.append(
            Case(f"efficientnet_lite{index}", "lukemelas", f"efficientnet-lite{index}", stages, quick=index == 0)
        )
    return cases


def _keras_applications() -> list[Case]:
    depths = {"resnext50": (3, 4, 6, 3), "resnext101": (3, 4, 23, 3)}
    cases = []
    for ours, theirs in (
        ("resnext50_32x4d", "resnext50_c32"),
        ("resnext101_32x4d", "resnext101_c32"),
        ("resnext101_64x4d", "resnext101_c64"),
    ):
        ends = {f"stage{s}": f"conv{s + 1}_block{n}_out" for s, n in enumerate(depths[theirs.split("_")[0]], start=1)}
        stages = {"stem": "conv1_relu", **ends}
        cases.append(Case(ours, "keras.applications", theirs, stages, quick=theirs == "resnext50_c32"))
    return cases


def _shuffled() -> list[Case]:
    """Return cases of megvii's and tensorpack's networks, some read into networks of other conventions than theirs."""
    ends = {"stem": "maxpool", "stage1": "features.3", "stage2": "features.11", "stage3": "features.15"}
    v1 = " ".join(
        f"shufflenet_v1_x{size.replace('.', '_')}_g{groups}=v1_x{size}_g{groups}"
        for groups in (3, 8)
        for size in ("0.5", "1.0", "1.5", "2.0")
    )
    # Into pytorchcv's networks of the same widths: with three groups by an argument, with eight by reordering.
    others = "shufflenet_g3_w1=v1_x1.0_g3 shufflenet_g8_w1=v1_x1.0_g8 shufflenet_g8_wd2=v1_x0.5_g8"
    tensorpacks = " ".join(
        f"shufflenet_g{groups}_{scale}=v1_x{ratio}_g{groups}"
        for groups in (3, 4, 8)
        for scale, ratio in (("w1", "1.0"), ("wd2", "0.5"))
    )
    v2 = "shufflenet_v2_x0_5=v2_x0.5 shufflenet_v2_x1_0=v2_x1.0 shufflenet_v2_x1_5=v2_x1.5 shufflenet_v2_x2_0=v2_x2.0"
    stages = {f"stage{stage}": f"stage{stage + 1}" for stage in (1, 2, 3)}
    return [
        *_cases("megvii", ends, v1, quick="v1_x0.5_g3 v1_x0.5_g8"),
        *_cases("megvii", ends, others, quick="v1_x1.0_g3 v1_x0.5_g8"),
        # Within and after our stages the channels are in another order.
        *_cases("megvii", {"stem": "maxpool", "final": "conv_last"}, v2, quick="v2_x0.5"),
        *_cases("tensorpack", stages, tensorpacks, quick="v1_x0.5_g8"),
        *_cases("tensorpack", stages, "shufflenet_v1_x0_5_g8=v1_x0.5_g8"),
    ]


CASES: tuple[Case, ...] = (
    *_timm(),
    *_aligned_xception(),
    *_torchvision(),
    *_pytorchcv(),
    *_lukemelas(),
    *_keras_applications(),
    *_shuffled(),
)


class TorchPeer:
    """A publisher's network in PyTorch, for images of any size, with random weights, ready for inference."""

    def __init__(self, case: Case) -> None:
        from tests.peers import randomise

        self._case = case
        self._network = randomise(_torch_network(case))
        for path, module in self._network.named_modules():
            if path.endswith(LAST_NORMS) and case.name.startswith(("resn", "seres", "senet", "eff", "tf_eff")):
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

    packages = ("keras", *BACKENDS[1:], "timm", "torchvision", "pytorchcv")
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
    parser.add_argument("--backend", action="append", choices=BACKENDS, help="only this one (repeatable)")
    parser.add_argument("--output", type=Path, help="a Markdown file for the table")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    cases = [
        case for case in CASES if fnmatch.fnmatch(case.label, options.pattern) and (case.quick or not options.quick)
    ]
    if options.worker:
        return _work(cases)
    passed_on = [options.pattern, *(["--quick"] if options.quick else [])]
    results = {backend: _run(backend, passed_on) for backend in options.backend or BACKENDS}
    table = _table(results, cases)
    print(table)
    if options.output:
        options.output.write_text(table)
    differences = [rows.get(case.label, {}).get("difference", 1.0) for rows in results.values() for case in cases]
    return int(max(differences, default=1.0) > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
