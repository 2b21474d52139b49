"""The ordered lists that decide how a convolution runs: `ConvSpec` and `Runtime` -> algorithm, and why.

A row says which algorithm it stands for and, given a spec and a runtime, why it cannot (or should not) run there.
The first row that has no objection runs. The order of the rows was measured: `benchmarks/algorithms.py`. Before them
come those that `groupwise tune` measured on this machine, for the convolution itself or for its kind.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from operator import index

from groupwise.routing.tuning import Tuning
from groupwise.spec import DTYPES, ConvSpec

# Channels of a group, up to which `groupwise tune` takes one for narrow.
WIDEST_NARROW_GROUP = 8


@dataclass(frozen=True)
class Accelerator:
    """What computes instead of a CPU.

    Attributes:
        name: the card's, as its framework calls it, such as "NVIDIA H200".
        has_bfloat16: whether it multiplies bfloat16 by instructions of its own.
    """

    name: str
    has_bfloat16: bool = False


@dataclass(frozen=True)
class Runtime:
    """Where a convolution is to run.

    Attributes:
        framework: "tensorflow", "jax" or "torch".
        device: "cpu" or "gpu" (any accelerator).
        grouped_gradients: the types in which the framework's own grouped convolution has gradients there
            (TensorFlow on a CPU has them only through oneDNN, which not every CPU makes it use).
        core: whether the C core is there, and wanted.
        tuning: what `groupwise tune` measured here; None where it did not, or is not wanted.
        accelerator: the "gpu"; None for a CPU, and for arrays that stand for others and lie nowhere.
    """

    framework: str
    device: str
    grouped_gradients: frozenset[str] = frozenset(DTYPES)
    core: bool = False
    tuning: Tuning | None = None
    accelerator: Accelerator | None = None

    @property
    def place(self) -> str:
        """The device in words: "cpu", or "gpu (NVIDIA H200)"."""
        return f"{self.device} ({self.accelerator.name})" if self.accelerator else self.device


@dataclass(frozen=True)
class Row:
    """One row of a routing list: an algorithm, the reason for its place, and its objection to a spec (or None)."""

    algorithm: str
    reason: str
    objection: Callable[[ConvSpec, Runtime], str | None]


@dataclass(frozen=True)
class Routing:
    """How one convolution runs and why; `str()` of it is the table that `groupwise routing` prints."""

    spec: ConvSpec
    runtime: Runtime
    algorithm: str
    reason: str
    passed_over: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        height, width, group_width, out_channels = self.spec.kernel_shape
        lines = [
            f"{height}x{width} convolution, {self.spec.in_channels} -> {out_channels} channels, "
            f"{self.spec.groups} group{'s' if self.spec.groups > 1 else ''} of {group_width}, "
            f"{self.spec.dtype}, {self.runtime.framework} on {self.runtime.place}",
            *(f"  passed over  {name}: {why}" for name, why in self.passed_over),
            f"  runs         {self.algorithm}: {self.reason}",
        ]
        return "\n".join(lines)


def _never(spec: ConvSpec, runtime: Runtime) -> str | None:
    return None


def _unless_pointwise(spec: ConvSpec, runtime: Runtime) -> str | None:
    return None if spec.is_pointwise else "the kernel is not 1x1, or the input is padded"


def _unless_depthwise(spec: ConvSpec, runtime: Runtime) -> str | None:
    if not spec.is_depthwise:
        return "a group has more than one input channel"
    return None if None not in spec.output_shape[1:] else "the image's size is not known"


def _if_grouped(spec: ConvSpec, runtime: Runtime) -> str | None:
    return "XLA's grouped gradient on a CPU is hundreds of times slower" if spec.groups > 1 else None


def _if_dense(spec: ConvSpec, runtime: Runtime) -> str | None:
    return "there is one group" if spec.groups == 1 else None


def _is_narrow(spec: ConvSpec) -> bool:
    return max(spec.group_width, spec.out_channels // spec.groups) <= WIDEST_NARROW_GROUP


def _without_grouped_gradients(spec: ConvSpec, runtime: Runtime) -> str | None:
    if spec.groups > 1 and spec.dtype not in runtime.grouped_gradients:
        return f"TensorFlow has no gradient of a grouped {spec.dtype} convolution on a CPU where it does not use oneDNN"
    return None


def _without_usable_gradients(spec: ConvSpec, runtime: Runtime) -> str | None:
    return (_if_grouped if runtime.framework == "jax" else _without_grouped_gradients)(spec, runtime)


def _without_core(spec: ConvSpec, runtime: Runtime) -> str | None:
    if runtime.device != "cpu":
        return f"it computes on CPUs, not on a {runtime.place}"
    if not runtime.core:
        return "it was not built, does not load here, or GROUPWISE_CORE is 0"
    return "it computes in float32" if spec.dtype == "float64" else None


def _unless_core_in_float32(spec: ConvSpec, runtime: Runtime) -> str | None:
    if spec.dtype in ("float16", "bfloat16") and _without_grouped_gradients(spec, runtime) is None:
        return f"it computes in float32, oneDNN in {spec.dtype}"
    return _without_core(spec, runtime)


_CORE = Row("core", "the C core, near the machine's limit", _without_core)
# Over oneDNN in PyTorch, forward and gradients, with AVX2: groups of 4 and 8 3.0, depthwise 2.2, wider groups 1.3,
# dense 1.2 (geometric means of benchmarks/kernels.py; with AVX-512, before the last changes, 2.3, 1.7, 1.2 and 1.2).
_CORE_IN_FLOAT32 = Row("core", "the C core, faster than oneDNN in float32", _unless_core_in_float32)
_BLOCKS = Row("blocks", "dense convolutions over blocks of about 32 channels", _never)

_ROWS: dict[tuple[str, str], tuple[Row, ...]] = {
    ("jax", "cpu"): (
        _CORE,
        Row("shifted_sum", "XLA fuses the shifted products into one loop", _unless_depthwise),
        Row(
            "matmul",
            "a 1x1 convolution is a matrix product, which XLA runs several times faster",
            _unless_pointwise,
        ),
        Row("native", "XLA's dense convolution", _if_grouped),
        _BLOCKS,
    ),
    ("torch", "cpu"): (_CORE_IN_FLOAT32, Row("native", "oneDNN through F.conv2d", _never)),
    ("tensorflow", "cpu"): (
        _CORE_IN_FLOAT32,
        Row("native", "oneDNN through tf.nn.conv2d, outside XLA", _without_grouped_gradients),
        _BLOCKS,
    ),
}
_ELSEWHERE = (_CORE, Row("native", "the framework's own convolution", _never))

# Why a measured algorithm cannot run: what it is not able to, however fast it may be.
_UNABLE: dict[str, Callable[[ConvSpec, Runtime], str | None]] = {
    "core": _without_core,
    "native": _without_usable_gradients,
    "matmul": _unless_pointwise,
    "shifted_sum": _unless_depthwise,
    "blocks": _if_dense,
}


KINDS = ("dense", "dense 1x1", "wide groups", "narrow groups", "grouped 1x1", "depthwise", "strided depthwise")


def candidates(spec: ConvSpec, runtime: Runtime) -> list[str]:
    """Return the algorithms that can run `spec` on `runtime` and are worth measuring."""
    return [name for name, objection in _UNABLE.items() if objection(spec, runtime) is None]


def kind(spec: ConvSpec) -> str:
    """Return the kind of convolution for which `groupwise tune` measures and stores a choice.

    Examples:
        >>> kind(ConvSpec.of((None, 56, 56, 128), (3, 3, 4, 128), groups=32))
        'narrow groups'
    """
    pointwise, strided = spec.kernel_shape[:2] == (1, 1), spec.strides != (1, 1)
    dense, dense_pointwise, wide, narrow, grouped_pointwise, depthwise, strided_depthwise = KINDS
    if spec.groups == 1:
        text = dense_pointwise if pointwise else dense
    elif spec.is_depthwise:
        text = strided_depthwise if strided else depthwise
    elif pointwise:
        text = grouped_pointwise
    else:
        text = narrow if _is_narrow(spec) else wide
    return text if spec.dtype == "float32" else f"{text}, {spec.dtype}"


def exact_name(spec: ConvSpec) -> str:
    """Return the name by which `groupwise tune NETWORK` stores its choice for `spec`: all of it but the batch.

    Examples:
        >>> exact_name(ConvSpec.of((None, 56, 56, 128), (3, 3, 4, 256), groups=32, strides=2))
        '56x56x128 -> 256, 3x3, 32 groups, strides 2 2, padding 0 1 0 1'
    """
    kernel_height, kernel_width, _, out_channels = spec.kernel_shape
    # torch.compile may trace this with symbols for sizes: an index is a number.
    sizes = "x".join("?" if size is None else str(index(size)) for size in spec.input_shape[1:])
    parts = [f"{sizes} -> {out_channels}", f"{kernel_height}x{kernel_width}"]
    sides = [index(side) for pair in spec.explicit_padding or () for side in pair]
    for text, values, usual in (
        ("strides", spec.strides, 1),
        ("dilation", spec.dilation_rate, 1),
        ("padding", sides, 0),
    ):
        if any(value != usual for value in values):
            parts.append(" ".join(map(str, (text, *values))))
    if spec.groups > 1:
        parts.insert(2, f"{spec.groups} groups")
    return ", ".join(parts if spec.dtype == "float32" else [*parts, spec.dtype])


def _measured(spec: ConvSpec, runtime: Runtime) -> Iterator[Row]:
    """Yield the rows that were measured here, for `spec` itself or else for its kind, the one to run first."""
    if runtime.tuning is None:
        return
    choices = runtime.tuning.choices
    # Where no convolution was measured by itself, a compiled function stays good for all sizes.
    by_itself = any(name not in KINDS for name in choices)
    choice = (choices.get(exact_name(spec)) if by_itself else None) or choices.get(kind(spec))
    if choice is None:
        return
    known = [(name, time) for name, time in choice.times if name in _UNABLE]
    for place, (name, time) in enumerate(known):
        reason = f"measured here on {choice.date}"
        for rival, longer in known[place + 1 : place + 2]:
            factor = f"{longer / time:.2f} times as fast as" if longer >= time else "about as fast as"
            reason += f": {factor} {rival}"
        yield Row(name, reason, _UNABLE[name])


@lru_cache(maxsize=4096)
def explain(spec: ConvSpec, runtime: Runtime) -> Routing:
    """Return which algorithm runs `spec` on `runtime`, which rows were passed over, and why."""
    passed_over: list[tuple[str, str]] = []
    for row in (*_measured(spec, runtime), *_ROWS.get((runtime.framework, runtime.device), _ELSEWHERE)):
        objection = row.objection(spec, runtime)
        if objection is None:
            return Routing(spec, runtime, row.algorithm, row.reason, tuple(passed_over))
        passed_over.append((row.algorithm, objection))
    raise AssertionError("every routing list ends with a row that takes everything")
