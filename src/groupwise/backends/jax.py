"""JAX: `lax.conv_general_dilated`."""

from typing import Any

import jax
from jax import lax

from groupwise.backends import jax_core as core
from groupwise.routing import Runtime
from groupwise.spec import ConvSpec

batch_normalise = None
pool = None


def runtime(inputs: Any = None) -> Runtime:
    """Return the runtime of JAX's default backend, where traced computations run."""
    if jax.default_backend() != "cpu":
        return Runtime("jax", "gpu")
    return Runtime("jax", "cpu", core=core.is_available())


def convolve(inputs: Any, kernel: Any, spec: ConvSpec) -> Any:
    """Return XLA's convolution of NHWC `inputs` and an HWIO `kernel`."""
    return lax.conv_general_dilated(
        inputs,
        kernel,
        window_strides=spec.strides,
        padding=spec.explicit_padding or "SAME",
        rhs_dilation=spec.dilation_rate,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=spec.groups,
    )
