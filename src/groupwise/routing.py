"""The ordered lists that decide how a convolution runs: `ConvSpec` and `Runtime` -> algorithm, and why.

A row says which algorithm it stands for and, given a spec and a runtime, why it cannot (or should not) run there.
The first row that has no objection runs. The order of the rows was measured: `benchmarks/algorithms.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from groupwise.spec import ConvSpec

# Channels of a group. Over PyTorch's speed, forward and gradients: depthwise 1.17, groups of 4 and 8 2.36, wider ones
# 0.81, dense 0.87 (geometric means of benchmarks/kernels.py).
WIDEST_NARROW_GROUP = 8


@dataclass(frozen=True)
class Runtime:
    """Where a convolution is to run.

    Attributes:
        framework: "tensorflow", "jax" or "torch".
        device: "cpu" or "gpu" (any accelerator).
        grouped_gradients: whether the framework's own grouped convolution has gradients there
            (TensorFlow on a CPU has them only through oneDNN).
        core: whether the C core is there, and wanted.
    """

    framework: str
    device: str
    grouped_gradients: bool = True
    core: bool = False


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
            f"{self.spec.dtype}, {self.runtime.framework} on {self.runtime.device}",
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


def _without_grouped_gradients(spec: ConvSpec, runtime: Runtime) -> str | None:
    if spec.groups > 1 and not runtime.grouped_gradients:
        return "TensorFlow has no gradient of a grouped convolution on a CPU without oneDNN"
    return None


def _without_core(spec: ConvSpec, runtime: Runtime) -> str | None:
    if not runtime.core:
        return "it was not built, does not load here, or GROUPWISE_CORE is 0"
    return "it computes in float32" if spec.dtype == "float64" else None


def _unless_core_and_narrow(spec: ConvSpec, runtime: Runtime) -> str | None:
    if spec.groups == 1 or max(spec.group_width, spec.out_channels // spec.groups) > WIDEST_NARROW_GROUP:
        return "oneDNN runs dense convolutions and wide groups as fast"
    if spec.is_depthwise and runtime.framework == "tensorflow":
        # With it ShuffleNet trained at 0.6 of the speed, MobileNet at 0.9: two sets of threads on the same cores.
        return "oneDNN on TensorFlow's own threads runs depthwise convolutions faster"
    if spec.dtype in ("float16", "bfloat16"):
        return f"it computes in float32, oneDNN in {spec.dtype}"
    return _without_core(spec, runtime)


_CORE = Row("core", "the C core, near the machine's limit", _without_core)
_GROUPED_CORE = Row("core", "the C core runs narrow groups faster than oneDNN", _unless_core_and_narrow)
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
    ("torch", "cpu"): (_GROUPED_CORE, Row("native", "oneDNN through F.conv2d", _never)),
    ("tensorflow", "cpu"): (
        _GROUPED_CORE,
        Row("native", "oneDNN through tf.nn.conv2d, outside XLA", _without_grouped_gradients),
        _BLOCKS,
    ),
}
_ELSEWHERE = (Row("native", "the framework's own convolution", _never),)


@lru_cache(maxsize=4096)
def explain(spec: ConvSpec, runtime: Runtime) -> Routing:
    """Return which algorithm runs `spec` on `runtime`, which rows were passed over, and why."""
    passed_over: list[tuple[str, str]] = []
    for row in _ROWS.get((runtime.framework, runtime.device), _ELSEWHERE):
        objection = row.objection(spec, runtime)
        if objection is None:
            return Routing(spec, runtime, row.algorithm, row.reason, tuple(passed_over))
        passed_over.append((row.algorithm, objection))
    raise AssertionError("every routing list ends with a row that takes everything")
