"""Bias, residual and activation in the convolution's own call, on every backend: values and all gradients."""

import pytest

from groupwise import backends, native
from groupwise.spec import ConvSpec
from tests import epilogues

needs_core = pytest.mark.skipif(not backends.active.core.is_available(), reason="the C core is off, or does not load")
every_spec = pytest.mark.parametrize("spec", epilogues.ONE_EACH, ids=["depthwise", "narrow", "dense", "wide", "1x1"])
every_end = pytest.mark.parametrize("activation", native.ACTIVATIONS)
every_extra = pytest.mark.parametrize("extras", epilogues.EXTRAS, ids=lambda extras: " and ".join(extras) or "nothing")


@needs_core
@pytest.mark.parametrize("compiled", [False, True])
@every_extra
@every_end
@every_spec
def test_the_core(spec: ConvSpec, activation: str, extras: tuple[str, ...], compiled: bool) -> None:
    def run(inputs, kernel, **others):
        return backends.active.core.convolve(inputs, kernel, spec, **others, activation=activation)

    epilogues.check(run, spec, extras, activation, compiled)
