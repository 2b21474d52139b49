"""Every network of ours that a publisher has, and the modules of the publisher's whose outputs are our stages."""

from collections.abc import Mapping
from dataclasses import dataclass, field

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
    # Into pytorchcv's networks of the same widths: with three groups by reordering, with eight by an argument.
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
