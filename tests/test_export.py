"""Export: the file in its own runtime against the network, its convolutions counted, and what is refused."""

import importlib.util
import json
import subprocess
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from PIL import Image

from groupwise import layers, models
from groupwise.cli import main
from groupwise.errors import UserError
from groupwise.export import FORMATS, export_model, exporting
from groupwise.export.formats import Format, choose_writer, find_format, is_installed
from groupwise.export.precision import relative_difference, tolerances, widen
from groupwise.export.signature import signature_of
from tests import tiny as bars
from tests.frameworks import BACKEND

tiny = bars.tiny


def needs(*packages: str) -> None:
    """Skip the test, and say why, where a package is not installed."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")


def every_layer() -> keras.Model:
    """Return a small model of all our layers, whose statistics are not what they start with."""
    ours = layers
    around = ((1, 1), (1, 1))
    inputs = keras.Input((16, 16, 3), name="image")
    x = ours.GroupedConv2D(64, 3, 2, around, name="stem")(inputs)
    x = ours.BatchNormalization(activation="relu")(x)
    shortcut = x
    x = ours.GroupedConv2D(64, 3, 1, around, groups=32, name="grouped")(x)
    x = ours.BatchNormalization(activation="relu6")(x, residual=shortcut)
    x = ours.ChannelShuffle(8)(x)
    x = ours.MaxPooling2D(3, 2, around)(x)
    x = ours.DepthwiseConv2D(3, 1, "same", name="depthwise")(x)
    x = ours.SqueezeExcite(4)(x)
    x = ours.SeparableConv2D(32, 3, padding=((0, 1), (0, 1)), name="separable")(x)
    x = ours.AveragePooling2D(2, padding="same")(x)
    x = keras.layers.RandomFlip()(x)
    model = keras.Model(inputs, keras.layers.Dense(5, name="scores")(keras.layers.GlobalAveragePooling2D()(x)))
    generator = np.random.default_rng(1)
    for layer in model.layers:
        if isinstance(layer, ours.BatchNormalization):
            shapes = [weight.shape for weight in layer.get_weights()]
            layer.set_weights([generator.uniform(0.5, 1.5, shape) for shape in shapes])
    return model


GROUPS = [1, 1, 32, 64, 64]  # the separable layer's last convolution is the second dense one


def check(model: Any, path: Path, name: str, groups: list[int]) -> exporting.Exported:
    """Export, and hold that the outputs agree and that each convolution is one operation with its groups."""
    done = export_model(model, path, name)
    assert done.path.exists()
    assert done.size > 0
    assert done.difference is not None
    assert done.difference < 1e-4
    assert sorted(done.groups) == groups
    assert [entry.name for entry in path.parent.iterdir() if entry.name.startswith(".partial")] == []
    return done


def test_onnx_of_every_layer_from_each_backend(tmp_path: Path) -> None:
    needs("torch", "onnx", "onnxscript", "onnxruntime")
    model = every_layer()
    assert check(model, tmp_path / "model.onnx", "onnx", GROUPS).backend == "torch"
    import onnx
    import onnxruntime

    graph = onnx.load(str(tmp_path / "model.onnx")).graph
    assert {node.domain for node in graph.node} == {""}
    kinds = {node.op_type for node in graph.node}
    assert {"Conv", "BatchNormalization", "MaxPool"} <= kinds
    assert "Split" not in kinds
    # The batch is of any size.
    images = np.random.default_rng(2).normal(size=(5, 16, 16, 3)).astype("float32")
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    outputs = session.run(None, {"image": images})[0]
    expected = keras.ops.convert_to_numpy(model(images, training=False))
    assert relative_difference(outputs, expected) < 1e-4


@pytest.mark.skipif(BACKEND != "jax", reason="the second process is the same for every backend: once is enough")
@pytest.mark.parametrize("name", ["savedmodel", "litert", "openvino"])
def test_the_other_formats(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")  # elsewhere OpenVINO forks to report that it is used, of which JAX warns
    form = find_format(name)
    needs("tensorflow", form.runner)
    path = tmp_path / f"model{form.ending}"
    assert check(every_layer(), path, name, GROUPS).backend == "tensorflow"
    if name == "openvino":
        import openvino

        file = openvino.Core().read_model(str(path))
        assert [tensor.get_names() for tensor in (*file.inputs, *file.outputs)] == [{"image"}, {"scores"}]


def test_a_stock_keras_model_with_groups(tmp_path: Path) -> None:
    """Keras's own grouped convolution would be an XLA call in TensorFlow's files."""
    needs("tensorflow")
    inputs = keras.Input((8, 8, 12))
    x = keras.layers.Conv2D(12, 3, groups=4, padding="same", name="grouped")(inputs)
    model = keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(keras.layers.ReLU()(x)))
    check(model, tmp_path / "stock", "savedmodel", [4])


def test_a_savedmodel_replaces_only_its_own_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(folder: Path, request: Any, writer: str) -> dict[str, Any]:
        (folder / request["name"]).mkdir()
        (folder / request["name"] / "saved_model.pb").write_text("a graph")
        return {"groups": [1, 4], "differences": None}

    monkeypatch.setattr(exporting, "_run_worker", run)
    monkeypatch.setattr(exporting, "choose_writer", lambda form: "tensorflow")
    (tmp_path / "net").mkdir()
    with pytest.raises(UserError, match=r"^path=.*net: there is a folder of that name already"):
        export_model("mnist_cnn", tmp_path / "net", "savedmodel")
    (tmp_path / "net" / "saved_model.pb").write_text("of before")
    done = export_model("mnist_cnn", tmp_path / "net", "savedmodel")
    assert (done.groups, done.difference, done.size) == ((1, 4), None, len("a graph"))
    assert [entry.name for entry in tmp_path.rglob("*")] == ["net", "saved_model.pb"]


@pytest.mark.skipif(BACKEND != "torch", reason="the second process is the same for every backend: once is enough")
def test_openvino_through_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs("torch", "openvino")
    monkeypatch.setattr(exporting, "choose_writer", lambda form: "torch")
    check(every_layer(), tmp_path / "model.xml", "openvino", GROUPS)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="the second process is the same for every backend: once is enough")
def test_the_command_checks_photos(tiny: str, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERAS_BACKEND", BACKEND)
    monkeypatch.chdir(tmp_path)
    network = models.create("mnist_cnn")
    network.metadata["class_names"] = list("0123456789")
    network.save("net.keras")
    Image.fromarray(bars.bars(1)[0][0]).save("a.png")
    needs("torch", "onnx", "onnxscript", "onnxruntime")
    assert main(["export", "net.keras", "--check", "a.png", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["images"], result["grouped"], result["backend"]) == (1, 0, "torch")
    assert result["difference"] < 1e-4
    assert result["bytes"] == Path("net.onnx").stat().st_size


def test_a_networks_name_means_the_network_though_a_file_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mnist_cnn").write_text("no model")
    network, source = exporting._network_and_source("mnist_cnn", tmp_path, (32, 32))
    assert network.input_shape == (None, 32, 32, 1)
    assert source == tmp_path / "source.keras"


@pytest.mark.once
def test_outputs_that_differ_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(folder: Path, request: Any, writer: str) -> dict[str, Any]:
        (folder / request["name"]).write_text("a file")
        return {"groups": [1], "differences": {"outputs": 0.5}}

    monkeypatch.setattr(exporting, "_run_worker", run)
    monkeypatch.setattr(exporting, "choose_writer", lambda form: "torch")
    with pytest.raises(UserError, match=r"was written, but its outputs differ .* by 5.0e-01"):
        export_model("mnist_cnn", tmp_path / "m.onnx")
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.onnx"]


@pytest.mark.skipif(BACKEND != "tensorflow", reason="the second process is the same for every backend: once is enough")
def test_what_fails_in_the_second_process_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    needs("torch")
    request = {"model": str(tmp_path / "no.keras"), "format": "onnx", "title": "ONNX", "modules": [], "paths": []}
    with pytest.raises(UserError, match=r"no.keras does not exist"):
        exporting._run_worker(tmp_path, request, "torch")


@pytest.mark.parametrize("written", [None, "", '{"groups": ['])
def test_a_second_process_that_could_not_say_what_it_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: str | None
) -> None:
    def run(*_: Any, **__: Any) -> Any:
        if written is not None:
            (tmp_path / "result.json").write_text(written)
        return subprocess.CompletedProcess([], 1, "", "Traceback\nOSError: [Errno 28] No space left on device\n")

    monkeypatch.setattr("subprocess.run", run)
    with pytest.raises(UserError, match=r"ONNX could not be written: the process ended with 1: .* No space left"):
        exporting._run_worker(tmp_path, {"title": "ONNX"}, "torch")


@pytest.mark.once
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mnist_cnn", "--format", "onx"), "--format onx: must be one of onnx, savedmodel, litert, openvino"),
        (("mnist_cnn", "--format", "litert", "--output", "m.onnx"), "--output m.onnx: must end in .tflite for LiteRT"),
        (("mnist_cnn", "--output", "none/m.onnx"), "--output none/m.onnx: there is no folder"),
        (("mnist_cnn", "--format", "savedmodel", "--output", "net [1]"), "reads no SavedModel from a path with one of"),
        (("mnist_cn",), "did you mean mnist_cnn"),
        (("runs/mnist_cn.keras",), "runs/mnist_cn.keras does not exist"),
        (("mnist_cnn", "--image-size", "x"), "--image-size x"),
        (("mnist_cnn", "--check", "none.png"), "none.png does not exist"),
        (("any.keras", "--check", "a.png"), "say of which one, such as --image-size 224"),
        (("fixed.keras", "--image-size", "64"), "--image-size 64: the network's own is 32x32"),
        (("vector.keras",), "only networks from one batch of images to one output"),
        (("plain.keras", "--check", "a.png"), "does not say how its images are prepared"),
    ],
)
def test_refusals(
    arguments: tuple[str, ...], message: str, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KERAS_BACKEND", BACKEND)
    monkeypatch.chdir(tmp_path)
    for module in ("groupwise.export.formats", "groupwise.export.exporting"):
        monkeypatch.setattr(f"{module}.choose_writer", lambda form: "torch")
    if arguments[0] == "any.keras":
        network = models.create("mnist_cnn", 2, (None, None, 3))
        network.metadata["preprocessing"] = {}
        network.save("any.keras")
        Image.new("RGB", (8, 8)).save("a.png")
    elif arguments[0] == "fixed.keras":
        keras.Sequential([keras.Input((32, 32, 3)), keras.layers.GlobalAveragePooling2D()]).save("fixed.keras")
    elif arguments[0] == "plain.keras":
        keras.Sequential([keras.Input((32, 32, 3)), keras.layers.GlobalAveragePooling2D()]).save("plain.keras")
        Image.new("RGB", (8, 8)).save("a.png")
    elif arguments[0] == "vector.keras":
        keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]).save("vector.keras")
    before = sorted(tmp_path.iterdir())
    assert main(["export", *arguments]) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.once
@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_missing_packages_are_named(form: Format) -> None:
    first = next(iter(form.writers))
    assert choose_writer(form, lambda package: True) == first
    with pytest.raises(UserError, match=r'pip install "groupwise\[(export,)?(tensorflow|torch)\]"$'):
        choose_writer(form, lambda package: False)
    if form.name == "onnx":
        with pytest.raises(UserError, match=r'here without onnx and onnxscript: pip install "groupwise\[export\]"$'):
            choose_writer(form, lambda package: package == "torch")
    assert is_installed("numpy")
    assert not is_installed("no_such_package")


@pytest.mark.once
def test_an_old_keras_is_told_to_be_renewed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("groupwise.export.formats.keras_version", lambda: (3, 12))
    with pytest.raises(UserError, match=r'ONNX needs Keras 3\.14 or newer: pip install "keras>=3\.14"'):
        choose_writer(find_format("onnx"), lambda package: True)
    assert choose_writer(find_format("savedmodel"), lambda package: True) == "tensorflow"


def test_what_computes_in_half_precision_is_widened_and_nothing_else() -> None:
    mixed = models.create("mnist_cnn", dtype="mixed_bfloat16")
    widen(mixed)
    images = np.ones((1, 28, 28, 1), "float32")
    plain = models.create("mnist_cnn", dtype="float32")
    plain.set_weights(mixed.get_weights())
    outputs, expected = (keras.ops.convert_to_numpy(model(images, training=False)) for model in (mixed, plain))
    assert relative_difference(outputs, expected) < 1e-5
    double = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Softmax(dtype="float64", name="double")])
    widen(double)
    assert double.get_layer("double").compute_dtype == "float64"


@pytest.mark.once
@pytest.mark.parametrize(
    ("head", "limits"), [("float32", {"outputs": 2**-6, "widened": 1e-4}), (None, {"outputs": 2**-6, "widened": 2**-9})]
)
def test_the_coarsest_type_decides_what_outputs_may_differ_by(head: str | None, limits: dict[str, float]) -> None:
    inputs = keras.Input((4, 4, 1))
    x = keras.layers.Conv2D(2, 3, dtype="mixed_float16")(inputs)
    model = keras.Model(inputs, keras.layers.Flatten(dtype=head or "mixed_float16")(x))
    assert tolerances(model) == limits


def typed(dtype: str) -> keras.Model:
    """Return a small model of images of a type, whose preprocessing lies within."""
    inputs = keras.Input((17, 15, 3), dtype=dtype, name="image")
    x = keras.layers.Conv2D(4, 3, 2, padding="same")(keras.layers.Rescaling(1 / 255.0)(inputs))
    return keras.Model(inputs, keras.layers.Dense(3, name="scores")(keras.layers.GlobalAveragePooling2D()(x)))


@pytest.mark.once
@pytest.mark.parametrize(
    ("dtype", "low", "high"), [("uint8", 0, 255), ("int8", -128, 127), ("int32", 0, 255), ("bool", 0, 1)]
)
def test_noise_has_the_inputs_type_and_range(dtype: str, low: int, high: int) -> None:
    noise = signature_of(typed(dtype), None).noise((64, 64))
    assert (str(noise.dtype), noise.shape) == (dtype, (3, 17, 15, 3))
    assert (noise.min(), noise.max()) == (low, high)


@pytest.mark.once
def test_a_type_that_numpy_lacks_becomes_float32() -> None:
    signature = signature_of(typed("bfloat16"), None)
    assert (signature.dtype, signature.output_dtype, signature.output_name) == ("float32", "float32", "scores")


def test_onnx_keeps_types_and_names(tmp_path: Path) -> None:
    needs("torch", "onnx", "onnxscript", "onnxruntime")
    inputs = keras.Input((17, 15, 3), dtype="uint8", name="an image [é]")
    x = keras.layers.Conv2D(4, 3, 2, padding="same", dtype="mixed_float16")(keras.layers.Rescaling(1 / 255.0)(inputs))
    scores = keras.layers.Dense(3, dtype="mixed_float16", name="scores")(keras.layers.GlobalAveragePooling2D()(x))
    model = keras.Model({"an image [é]": inputs}, {"named [ü]": scores}, name="net [1]")
    model.compile("sgd", loss=lambda truth, outputs: keras.ops.mean(outputs - truth))
    compiled = model.get_compile_config
    path = tmp_path / "a (net) [é].x.onnx"
    done = export_model(model, path)
    assert model.get_compile_config == compiled
    assert len(done.widened) == 2
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (given,), (result,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.type, given.shape) == ("an image [é]", "tensor(uint8)", ["batch", 17, 15, 3])
    assert (result.name, result.type, result.shape) == ("named [ü]", "tensor(float16)", ["batch", 3])
    for batch in (1, 2, 5):
        images = np.random.default_rng(batch).integers(0, 256, (batch, 17, 15, 3), np.uint8)
        outputs = session.run(None, {given.name: images})[0]
        expected = keras.ops.convert_to_numpy(model({given.name: images}, training=False)["named [ü]"])
        assert relative_difference(outputs, expected.astype("float16")) < 2**-6


@pytest.mark.skipif(BACKEND != "tensorflow", reason="the second process is the same for every backend: once is enough")
def test_litert_infers_for_images_of_any_size(tmp_path: Path) -> None:
    """Augmentation is off, the index of the largest is an integer, and odd sizes are padded as they should be."""
    needs("tensorflow")
    inputs = keras.Input((None, None, 3), name="an image")
    x = keras.layers.RandomFlip()(inputs)
    x = layers.GroupedConv2D(4, 3, 2, "same", groups=1, name="first [é]")(x)
    x = layers.GroupedConv2D(4, 3, 2, "same", groups=2)(x)
    model = keras.Model(inputs, keras.ops.argmax(x, -1))
    assert export_model(model, tmp_path / "any.tflite", "litert").difference == 0
    from groupwise.backends.tensorflow.export import inspect_litert

    _, run = inspect_litert(tmp_path / "any.tflite")
    images = np.random.default_rng(3).normal(size=(2, 33, 22, 3)).astype("float32")
    outputs, expected = run(images), keras.ops.convert_to_numpy(model(images, training=False))
    assert outputs.dtype == "int32"
    assert (outputs.shape, (outputs == expected).mean()) == ((2, 9, 6), 1)


def simple(layer: Any) -> keras.Model:
    """Return a model of one layer."""
    inputs = keras.Input((8, 8, 3))
    return keras.Model(inputs, layer(inputs))


def quantized() -> keras.Model:
    """Return a model with an int8 layer."""
    model = simple(keras.layers.Dense(2, name="head"))
    model.quantize("int8")
    return model


@pytest.mark.once
@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method")
@pytest.mark.filterwarnings("ignore:You are saving a model that has not yet been built")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: simple(keras.layers.Conv2D(2, 3, dtype="float64", name="c")), "weight c/kernel is float64"),
        (lambda: simple(keras.layers.Conv2D(2, 3, dtype="float16", name="c")), "weight c/kernel is float16"),
        (quantized, r"layer 'head' is quantized \(int8_from_float32\), which ONNX cannot hold"),
        (lambda: simple(keras.layers.Lambda(lambda x: x, name="own")), "layer 'own' is a Lambda"),
        (lambda: simple(keras.layers.Rescaling(float("inf"))), "outputs are not finite"),
        (lambda: keras.Sequential([keras.layers.Conv2D(3, 3)]), "begin it with keras.Input"),
        (lambda: keras.Model(i := keras.Input((8, 8, 3)), [i, keras.ops.relu(i)]), "to one output are exported"),
    ],
)
def test_models_that_are_refused(make: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "choose_writer", lambda form: "torch")
    with pytest.raises(UserError, match=message):
        export_model(make(), tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []
