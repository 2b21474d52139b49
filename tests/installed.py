"""What an installation must do with one framework and no extra: `.ci/wheels` runs it in a fresh environment.

A program, not a test of pytest's, which is not there. With `--with-extras` the extras may be there.
"""

import subprocess
import sys
import time

import keras
import numpy as np

started = time.perf_counter()
import groupwise  # noqa: E402

members = groupwise.layers, groupwise.models, groupwise.ops
milliseconds = 1000 * (time.perf_counter() - started)

from groupwise.core import library  # noqa: E402

assert library.is_available()
inputs = np.random.default_rng(0).normal(size=(2, 9, 9, 8)).astype("float32")
layer = groupwise.layers.GroupedConv2D(16, 3, groups=4, padding="same")
outputs = keras.ops.convert_to_numpy(layer(inputs))
kernel, padded = np.asarray(layer.get_weights()[0]), np.pad(inputs, ((0, 0), (1, 1), (1, 1), (0, 0)))
windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
expected = [
    np.einsum("nyxchw,hwco->nyxo", windows[:, :, :, 2 * group : 2 * group + 2], kernel[..., 4 * group : 4 * group + 4])
    for group in range(4)
]
np.testing.assert_allclose(outputs, np.concatenate(expected, axis=3), atol=1e-4)
assert "runs         core" in str(groupwise.explain_routing(inputs.shape, kernel.shape, groups=4))

network = groupwise.models.create("resnext50_32x4d", num_classes=3)
images = keras.Input((32, 32, 8))
stock = keras.Model(images, keras.layers.Conv2D(8, 3, groups=4)(images))
assert isinstance(groupwise.accelerate(stock).layers[1], groupwise.layers.GroupedConv2D)
assert callable(groupwise.export.export_model)
if "--with-extras" not in sys.argv:
    command = [sys.executable, "-c", "import sys; from groupwise.cli import main; sys.exit(main(['models']))"]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (said.returncode, said.stderr.count("\n")) == (2, 1), said
    assert 'pip install "groupwise[cli]"' in said.stderr

print(
    f"groupwise {groupwise.__version__} on {keras.backend.backend()}: core {library.instruction_set()}, "
    f"imported in {milliseconds:.0f} ms beyond Keras; {network.count_params():,} parameters"
)
