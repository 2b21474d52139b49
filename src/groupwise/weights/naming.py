"""How each publisher names the layers of each family: tables, from our layers' names to a file's.

A layer of ours is `stage{s}_unit{u}_{part}`, or stands outside the stages (`stem_conv`, `head`). Where it has two
steps, each is a name of its own: `.depthwise` and `.pointwise` of a separable layer, `.reduce` and `.expand` of
squeeze-and-excitation.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

Names = Mapping[str, str | tuple[str, ...]]

RESIDUAL = ("ResNet", "ResNeXt", "SE-ResNet", "SE-ResNeXt", "SENet")
SQUEEZED = ("SE-ResNet", "SE-ResNeXt", "SENet")
_UNIT = re.compile(r"stage(\d+)_unit(\d+)_(.+)")


@dataclass(frozen=True, eq=False)
class Naming:
    """One publisher's names of one kind of network.

    Attributes:
        publisher: who names layers so.
        families: the `Variant.family` of the networks that it holds for.
        unit: the name of a part of a unit, with {part} and any of {stage}, {unit} (from 1), {index} (of the unit in
            the whole network, from 0), and these by other counts: {stage_from_0}, {stage_from_2}, {unit_from_0},
            {index_from_1}.
        parts: from a part's name to the file's; "stage1_PART" goes before "PART" for units of stage 1. Several names
            are alternatives.
        others: likewise, for layers outside the stages; {units} is how many units there are.
    """

    publisher: str
    families: tuple[str, ...]
    unit: str
    parts: Names
    others: Names

    def candidates(self, layer: str, starts: Mapping[int, int]) -> tuple[str, ...]:
        """Return the names that a layer of ours may have in a file.

        Args:
            layer: such as "stage2_unit1_reduce_conv".
            starts: `unit_starts` of the network.
        """
        found = _UNIT.fullmatch(layer)
        if found is None:
            units = max(starts.values(), default=0)
            return tuple(name.format(units=units) for name in _alternatives(self.others.get(layer, ())))
        stage, unit, part = int(found[1]), int(found[2]), found[3]
        index = starts.get(stage, 0) + unit - 1
        fields = {"stage": stage, "unit": unit, "index": index, "index_from_1": index + 1}
        fields |= {"stage_from_0": stage - 1, "stage_from_2": stage + 1, "unit_from_0": unit - 1}
        names = self.parts.get(f"stage{stage}_{part}", self.parts.get(part, ()))
        return tuple(self.unit.format(part=name, **fields) for name in _alternatives(names))

    def likeness(self, modules: Iterable[str]) -> Counter[str]:
        """Return, by what stands before them, how many modules have names that this naming gives.

        These are the names of the first unit and of `others`. Where no part of a unit is found, there is no network.
        """
        units = {name for part in self.parts for name in self.candidates(f"stage1_unit1_{_plain(part)}", {})}
        others = {name for layer in self.others for name in self.candidates(layer, {})}
        found: Counter[str] = Counter()
        with_units = set()
        for module in modules:
            words = module.split(".")
            for place in range(len(words)):
                prefix, name = ".".join(words[:place]), ".".join(words[place:])
                if name in units:
                    with_units.add(prefix)
                found[prefix] += name in units or name in others
        return Counter({prefix: count for prefix, count in found.items() if prefix in with_units})


def unit_starts(layers: Iterable[str]) -> dict[int, int]:
    """Return how many units stand before each stage, and before what follows the last one.

    Examples:
        >>> unit_starts(["stem_conv", "stage1_unit1_conv", "stage1_unit2_conv", "stage2_unit1_conv"])
        {1: 0, 2: 2, 3: 3}
    """
    depths: dict[int, int] = {}
    for layer in layers:
        if found := _UNIT.fullmatch(layer):
            depths[int(found[1])] = max(depths.get(int(found[1]), 0), int(found[2]))
    stages = range(1, max(depths, default=0) + 2)
    return {stage: sum(depths[before] for before in depths if before < stage) for stage in stages}


def _alternatives(names: str | tuple[str, ...]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names


def _plain(part: str) -> str:
    return re.sub(r"^stage\d+_", "", part)


def _names(text: str) -> dict[str, str]:
    """Return "stem_conv=conv1 head=fc" as {"stem_conv": "conv1", "head": "fc"}."""
    return dict(pair.split("=") for pair in text.split())


def _conv_bn(names: Mapping[str, str], conv: str = "{}.conv", bn: str = "{}.bn") -> dict[str, str]:
    """Return {"reduce": "conv1"} as {"reduce_conv": "conv1.conv", "reduce_bn": "conv1.bn"}."""
    return {
        f"{ours}_{kind}": pattern.format(theirs)
        for ours, theirs in names.items()
        for kind, pattern in (("conv", conv), ("bn", bn))
    }


_PLACES = {"reduce": "1", "spatial": "2", "expand": "3", "spatial1": "1", "spatial2": "2"}
_TORCHVISION_BLOCK = {
    **_conv_bn(_PLACES, "conv{}", "bn{}"),
    "shortcut_conv": "downsample.0",
    "shortcut_bn": "downsample.1",
}
_TORCHVISION_RESIDUAL = Naming(
    "timm and torchvision",
    RESIDUAL,
    "layer{stage}.{unit_from_0}.{part}",
    {**_TORCHVISION_BLOCK, "squeeze.reduce": "se.fc1", "squeeze.expand": "se.fc2"},
    {
        **_names("stem_conv=conv1 stem_bn=bn1 head=fc"),
        **_names("stem1_conv=conv1.0 stem1_bn=conv1.1 stem2_conv=conv1.3 stem2_bn=conv1.4"),
        **_names("stem3_conv=conv1.6 stem3_bn=bn1"),
    },
)
_LEGACY_RESIDUAL = Naming(
    "legacy",
    SQUEEZED,
    "layer{stage}.{unit_from_0}.{part}",
    {**_TORCHVISION_BLOCK, "squeeze.reduce": "se_module.fc1", "squeeze.expand": "se_module.fc2"},
    {
        **_conv_bn({"stem": "1", "stem1": "1", "stem2": "2", "stem3": "3"}, "layer0.conv{}", "layer0.bn{}"),
        "head": "last_linear",
    },
)
_PYTORCHCV_RESIDUAL = Naming(
    "pytorchcv",
    (*RESIDUAL, "CIFAR ResNeXt"),
    "features.stage{stage}.unit{unit}.{part}",
    {
        **_conv_bn({part: f"body.conv{place}" for part, place in _PLACES.items()}),
        **_conv_bn({"shortcut": "identity_conv"}),
        **_names("squeeze.reduce=se.conv1 squeeze.expand=se.conv2"),
    },
    {
        "stem_conv": ("features.init_block.conv.conv", "features.init_block.conv"),
        "stem_bn": ("features.init_block.conv.bn", "features.init_block.bn"),
        **_conv_bn({f"stem{place}": f"features.init_block.conv{place}" for place in (1, 2, 3)}),
        "head": ("output", "output.fc"),
    },
)
_KERAS_RESNEXT = Naming(
    "keras.applications",
    ("ResNeXt",),
    "conv{stage_from_2}_block{unit}_{part}",
    _conv_bn({"reduce": "1", "spatial": "2", "expand": "3", "shortcut": "0"}, "{}_conv", "{}_bn"),
    {"stem_conv": "conv1_conv", "stem_bn": "conv1_bn", "head": ("probs", "predictions")},
)

_PYTORCHCV_SHUFFLENET = Naming(
    "pytorchcv",
    ("ShuffleNet v1", "ShuffleNet v2"),
    "features.stage{stage}.unit{unit}.{part}",
    {
        **_names("compress_conv=compress_conv1 compress_bn=compress_bn1"),
        **_names("depthwise_conv=dw_conv2 depthwise_bn=dw_bn2"),
        **_names("expand_conv=expand_conv3 expand_bn=expand_bn3"),
        **_names("shortcut_depthwise_conv=dw_conv4 shortcut_depthwise_bn=dw_bn4"),
        **_names("shortcut_expand_conv=expand_conv5 shortcut_expand_bn=expand_bn5"),
    },
    {
        "stem_conv": ("features.init_block.conv.conv", "features.init_block.conv"),
        "stem_bn": ("features.init_block.conv.bn", "features.init_block.bn"),
        **_conv_bn({"final": "features.final_block"}),
        "head": "output",
    },
)
_PYTORCHCV_SHUFFLENET_V2B = Naming(
    "pytorchcv, v2b",
    ("ShuffleNet v2",),
    "features.stage{stage}.unit{unit}.{part}",
    _conv_bn(
        {
            **_names("compress=conv1 depthwise=dconv expand=conv2"),
            **_names("shortcut_depthwise=shortcut_dconv shortcut_expand=shortcut_conv"),
        }
    ),
    _PYTORCHCV_SHUFFLENET.others,
)
_MEGVII_SHUFFLENET = Naming(
    "megvii",
    ("ShuffleNet v1",),
    "features.{index}.{part}",
    {
        **_names("compress_conv=branch_main_1.0 compress_bn=branch_main_1.1"),
        **_names("depthwise_conv=branch_main_1.3 depthwise_bn=branch_main_1.4"),
        **_names("expand_conv=branch_main_2.0 expand_bn=branch_main_2.1"),
    },
    {"stem_conv": "first_conv.0", "stem_bn": "first_conv.1", "head": "classifier.0"},
)
_SPLIT_UNIT = (
    *("compress_conv", "compress_bn", "", "depthwise_conv", "depthwise_bn", "expand_conv", "expand_bn"),
    *("shortcut_depthwise_conv", "shortcut_depthwise_bn", "shortcut_expand_conv", "shortcut_expand_bn"),
)
"""The layers of both branches of ShuffleNet v2's unit as PyTorch counts them; the third is a ReLU."""


def _split_unit(main: str, shortcut: str) -> dict[str, str]:
    names = [*(f"{main}.{place}" for place in range(7)), *(f"{shortcut}.{place}" for place in range(4))]
    return {ours: theirs for ours, theirs in zip(_SPLIT_UNIT, names, strict=True) if ours}


_MEGVII_SHUFFLENET_V2 = Naming(
    "megvii",
    ("ShuffleNet v2",),
    "features.{index}.{part}",
    _split_unit("branch_main", "branch_proj"),
    {**_MEGVII_SHUFFLENET.others, "final_conv": "conv_last.0", "final_bn": "conv_last.1"},
)
_TORCHVISION_SHUFFLENET_V2 = Naming(
    "torchvision",
    ("ShuffleNet v2",),
    "stage{stage_from_2}.{unit_from_0}.{part}",
    _split_unit("branch2", "branch1"),
    {
        **_names("stem_conv=conv1.0 stem_bn=conv1.1 final_conv=conv5.0 final_bn=conv5.1"),
        "head": "fc",
    },
)
_TENSORPACK_SHUFFLENET = Naming(
    "tensorpack",
    ("ShuffleNet v1",),
    "stage{stage_from_2}.block{unit_from_0}.{part}",
    {
        **_names("compress_conv=conv1 compress_bn=conv1.bn depthwise_conv=dconv depthwise_bn=dconv_bn"),
        **_names("expand_conv=conv2 expand_bn=conv2_bn"),
    },
    {"stem_conv": "conv1", "stem_bn": "conv1.bn", "head": "linear"},
)

_TIMM_LIGHT = {
    **_names("stem_conv=conv_stem stem_bn=bn1 final_conv=conv_head final_bn=bn2"),
    "head": "classifier",
}
_TIMM_MOBILENET = Naming(
    "timm",
    ("MobileNet v1",),
    "blocks.{stage_from_0}.{unit_from_0}.{part}",
    {
        **_names("depthwise_conv=conv_dw depthwise_bn=bn1"),
        **_names("pointwise_conv=conv_pw pointwise_bn=bn2"),
    },
    _TIMM_LIGHT,
)
_TIMM_EFFICIENTNET = Naming(
    "timm",
    ("EfficientNet-Lite",),
    "blocks.{stage_from_0}.{unit_from_0}.{part}",
    {
        # The first stage does not expand: its parts are counted from the depthwise convolution.
        **_names("stage1_depthwise_bn=bn1 stage1_project_conv=conv_pw stage1_project_bn=bn2"),
        **_names("expand_conv=conv_pw expand_bn=bn1 depthwise_conv=conv_dw depthwise_bn=bn2"),
        **_names("project_conv=conv_pwl project_bn=bn3"),
    },
    _TIMM_LIGHT,
)
_LUKEMELAS_EFFICIENTNET = Naming(
    "lukemelas",
    ("EfficientNet-Lite",),
    "_blocks.{index}.{part}",
    {
        **_names("expand_conv=_expand_conv expand_bn=_bn0 depthwise_conv=_depthwise_conv"),
        **_names("depthwise_bn=_bn1 project_conv=_project_conv project_bn=_bn2"),
    },
    {
        **_names("stem_conv=_conv_stem stem_bn=_bn0 final_conv=_conv_head final_bn=_bn1"),
        "head": "_fc",
    },
)
_PYTORCHCV_MOBILENET = Naming(
    "pytorchcv",
    ("MobileNet v1",),
    "features.stage{stage}.unit{unit}.{part}",
    _conv_bn({"depthwise": "dw_conv", "pointwise": "pw_conv"}),
    {**_conv_bn({"stem": "features.init_block"}), "head": "output"},
)


def _separable(ours: str, conv: str, bn: str, steps: tuple[str, str]) -> dict[str, str]:
    depthwise, pointwise = (f"{conv}.{step}" for step in steps)
    return {f"{ours}_conv.depthwise": depthwise, f"{ours}_conv.pointwise": pointwise, f"{ours}_bn": bn}


def _xception_units() -> dict[str, str]:
    """Return the parts of timm's units, where ReLU, convolution and batch norm take turns; the first has no ReLU."""
    parts = {"shortcut_conv": "skip", "shortcut_bn": "skipbn"}
    for prefix, first in (("", 1), ("stage1_", 0)):
        for place in (1, 2, 3):
            index = first + 3 * (place - 1)
            name = f"{prefix}separable{place}"
            parts |= _separable(name, f"rep.{index}", f"rep.{index + 1}", ("conv1", "pointwise"))
    return parts


_TIMM_XCEPTION = Naming(
    "timm",
    ("Xception",),
    "block{index_from_1}.{part}",
    _xception_units(),
    {
        **_conv_bn({"stem1": "1", "stem2": "2"}, "conv{}", "bn{}"),
        **_separable("final1", "conv3", "bn3", ("conv1", "pointwise")),
        **_separable("final2", "conv4", "bn4", ("conv1", "pointwise")),
        "head": ("fc", "last_linear"),
    },
)
_PYTORCHCV_XCEPTION = Naming(
    "pytorchcv",
    ("Xception",),
    "features.stage{stage}.unit{unit}.{part}",
    {
        **_conv_bn({"shortcut": "identity_conv"}),
        **{
            ours: theirs
            for place in (1, 2, 3)
            for ours, theirs in _separable(
                f"separable{place}", f"body.block{place}.conv", f"body.block{place}.bn", ("dw_conv", "pw_conv")
            ).items()
        },
    },
    {
        **_conv_bn({f"stem{place}": f"features.init_block.conv{place}" for place in (1, 2)}),
        **{
            ours: theirs
            for place in (1, 2)
            for ours, theirs in _separable(
                f"final{place}",
                f"features.final_block.conv{place}.conv",
                f"features.final_block.conv{place}.bn",
                ("dw_conv", "pw_conv"),
            ).items()
        },
        "head": "output",
    },
)


def _aligned_steps() -> dict[str, str]:
    """Return timm's names of a unit's separable convolutions: of two layers with batch norms, and of one without."""
    parts: dict[str, str] = {}
    for place in (1, 2, 3):
        ours, theirs = f"separable{place}", f"stack.conv{place}"
        parts |= _conv_bn(
            {f"{ours}_depthwise": "dw", f"{ours}_pointwise": "pw"}, f"{theirs}.conv_{{}}", f"{theirs}.bn_{{}}"
        )
        steps = ("conv_dw", "conv_pw")
        parts |= _separable(ours, theirs, f"stack.conv{place + 1}.norm", steps)
    return parts | {"bn": "norm"}


_TIMM_ALIGNED_XCEPTION = Naming(
    "timm",
    ("Aligned Xception",),
    "blocks.{index}.{part}",
    {**_aligned_steps(), "shortcut_conv": ("shortcut.conv", "shortcut"), "shortcut_bn": "shortcut.bn"},
    {
        **{f"final_{part}": f"blocks.{{units}}.{name}" for part, name in _aligned_steps().items()},
        **_conv_bn({"stem1": "stem.0", "stem2": "stem.1"}),
        "stem2_conv": ("stem.1.conv", "stem.1"),
        "head": "head.fc",
    },
)

NAMINGS: tuple[Naming, ...] = (
    _TORCHVISION_RESIDUAL,
    _LEGACY_RESIDUAL,
    _PYTORCHCV_RESIDUAL,
    _KERAS_RESNEXT,
    _PYTORCHCV_SHUFFLENET,
    _PYTORCHCV_SHUFFLENET_V2B,
    _MEGVII_SHUFFLENET,
    _MEGVII_SHUFFLENET_V2,
    _TORCHVISION_SHUFFLENET_V2,
    _TENSORPACK_SHUFFLENET,
    _TIMM_MOBILENET,
    _TIMM_EFFICIENTNET,
    _LUKEMELAS_EFFICIENTNET,
    _PYTORCHCV_MOBILENET,
    _TIMM_XCEPTION,
    _PYTORCHCV_XCEPTION,
    _TIMM_ALIGNED_XCEPTION,
)
"""Every publisher's naming of every kind of network that is read."""
