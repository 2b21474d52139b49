"""JAX: the core's handlers, made known to XLA once."""

import ctypes
import warnings
from functools import cache
from typing import Any

import jax

from groupwise.backends.jax.devices import check_on_cpu
from groupwise.backends.jax.mesh import custom_partitioning
from groupwise.core import library

_NAMES = (
    *("forward", "input_gradient", "kernel_gradient"),
    "separable",
    *("link", "link_input_gradient", "link_kernel_gradient"),
    *("max_pool", "max_pool_gradient"),
    *("moments", "normalize", "gradient_sums", "gradient"),
)


def is_available() -> bool:
    """Return whether the core is wanted, there, and JAX takes it; where JAX does not, one warning says why."""
    return library.is_available() and _register()


def require(inputs: Any) -> None:
    """Raise RuntimeError where the core is not available; without this, XLA knows none of its custom calls.

    Raises:
        ValueError: the inputs lie on an accelerator.
    """
    check_on_cpu(inputs)
    if not is_available():
        raise RuntimeError(f"the core is not available here: GROUPWISE_CORE is 0, or JAX cannot load {library.path()}")


@cache
def _register() -> bool:
    try:
        # Before the CPU has started, a handler that XLA refuses would keep it from starting; afterwards this raises.
        jax.devices("cpu")
        binding = ctypes.CDLL(str(library.path("groupwise_jax")))
        for name in (f"gw_jax_{name}" for name in _NAMES):
            jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(getattr(binding, name)), platform="cpu")
        custom_partitioning()
    except (OSError, ImportError, AttributeError, RuntimeError) as error:
        warnings.warn(
            f"groupwise runs on XLA's own convolutions: JAX {jax.__version__} does not take the C core: {error}",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    return True
