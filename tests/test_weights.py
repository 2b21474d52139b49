"""Published weights: parity with the publishers' own networks, what travels with them, and what does not fit."""

import json
import re
import warnings
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from groupwise import models
from groupwise.errors import UserError
from groupwise.models.pretrained import create_pretrained
from groupwise.weights import imagenet_classes, input_of
from groupwise.weights.keys import COUNTERS, canonical_keys, recognise
from tests import parity
from tests.parity_cases import CASES, Case
from tests.published import pytorchcv_file

TINY = "resnext20_16x4d_cifar10"


@pytest.mark.parametrize(
    "case", [pytest.param(c, id=c.label, marks=() if c.quick else pytest.mark.slow) for c in CASES]
)
@pytest.mark.shared
def test_parity(case: Case) -> None:
    """Logits and stages at two sizes, through a file on disk."""
    assert parity.difference(case) < parity.TOLERANCE


def test_every_value_goes_into_its_own_variable(tmp_path: Path) -> None:
    path = pytorchcv_file(tmp_path / "weights.npz", TINY)
    network = models.create(TINY, weights=path)
    arrays = np.load(path)
    np.testing.assert_array_equal(network.get_layer("stem_conv").kernel, arrays["features.init_block.conv.weight"])
    expected = arrays["features.stage2.unit1.identity_conv.bn.running_var"]
    np.testing.assert_array_equal(network.get_layer("stage2_unit1_shortcut_bn").moving_variance, expected)
    assert network.metadata["weights"] == {"source": str(path), "publisher": "pytorchcv"}
    assert network.metadata["class_names"][3] == "cat"


@pytest.mark.once
@pytest.mark.parametrize(
    ("prefix", "beside", "note"),
    [
        ("module.", {}, None),
        ("_orig_mod.module.model.", {"_orig_mod.module.n_averaged": 3}, None),
        ("model.", {"criterion.weight": np.ones(5)}, "left unread, since it lies beside the network: criterion.weight"),
        ("net.backbone.", {"net.neck.weight": np.ones((3, 3)), "total_ops": 1}, "net.neck.weight"),
        ("student.", {}, None),
    ],
)
def test_a_network_within_something_else(tmp_path: Path, prefix: str, beside: dict[str, Any], note: str | None) -> None:
    path = pytorchcv_file(tmp_path / "weights.npz", TINY)
    renamed = {f"{prefix}{key}": value for key, value in np.load(path).items()}
    renamed |= {f"{prefix}features.init_block.bn.{counter}": np.array(7) for counter in COUNTERS}
    np.savez(tmp_path / "within.npz", **renamed, **beside)
    plain, (within, said) = models.create(TINY, weights=path), create_pretrained(TINY, tmp_path / "within.npz")
    for a, b in zip(plain.get_weights(), within.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert said == note or (note and said and said.endswith(note))


TORCHVISION = ("conv1.weight", "bn1.weight", "layer1.0.conv1.weight", "layer1.0.bn1.weight", "fc.weight")


@pytest.mark.once
@pytest.mark.parametrize(
    ("prefixes", "chosen", "note"),
    [
        (
            ("model.", "ema_model."),
            "ema_model.",
            "the averaged weights below ema_model. are taken, not those below model.",
        ),
        (("", "model_ema.module."), "model_ema.module.", "not those below no prefix"),
        (("model.", "criterion.net."), "model.", "the weights below model. are taken, not those below criterion.net."),
        (("", "loss.net."), "", "the weights below no prefix are taken, not those below loss.net."),
        (("model.", "model.loss."), "model.", "not those below model.loss."),
    ],
)
def test_which_of_two_networks_is_taken(prefixes: tuple[str, ...], chosen: str, note: str) -> None:
    """The averaged one, as timm does; else the one in a plain wrapper, such as a loss's beside it is not."""
    keys = [prefix + key for prefix in prefixes for key in TORCHVISION]
    found = recognise("a.pth", "ResNet", keys)
    assert found.keys == {key: chosen + key for key in TORCHVISION}
    assert found.note is not None
    assert found.note.endswith(note)


@pytest.mark.once
def test_two_networks_of_which_none_is_meant_are_refused() -> None:
    keys = [prefix + key for prefix in ("encoder_q.", "encoder_k.") for key in TORCHVISION]
    with pytest.raises(UserError, match=re.escape("several networks of this kind, below encoder_q., encoder_k.: save")):
        recognise("a.pth", "ResNet", keys)


@pytest.mark.once
def test_missing_unexpected_and_misshapen_keys_are_listed(tmp_path: Path) -> None:
    changes = {
        "features.stage1.unit1.body.conv2.bn.bias": None,
        "features.stage3.unit9.body.conv1.conv.weight": np.zeros((1, 1, 2, 2), "float32"),
        "features.init_block.conv.weight": np.zeros((3, 3, 3, 32), "float32"),
        "output.fc.weight": np.zeros((512, 10), "float32"),
    }
    path = pytorchcv_file(tmp_path / "weights.npz", TINY, **changes)
    with pytest.raises(UserError) as error:
        models.create(TINY, weights=path)
    for text in (
        "1 missing: features.stage1.unit1.body.conv2.bn.bias",
        "1 unexpected: features.stage3.unit9.body.conv1.conv.weight",
        "2 of another shape: features.init_block.conv.weight 3x3x3x32 instead of 3x3x3x64",
        "output.fc.weight 512x10 instead of 1024x10",
    ):
        assert text in str(error.value)


@pytest.mark.once
def test_squeezing_weights_fit_no_network_that_does_not_squeeze(tmp_path: Path) -> None:
    path = pytorchcv_file(tmp_path / "weights.npz", "seresnet18")
    with pytest.raises(UserError, match=r"does not fit this network; keys 32 unexpected: .*\.se\.conv1\.weight"):
        models.create("resnet18", weights=path)


@pytest.mark.once
def test_another_number_of_classes_leaves_a_fresh_head(tmp_path: Path) -> None:
    path = pytorchcv_file(tmp_path / "weights.npz", TINY)
    with pytest.warns(UserWarning, match="the head is fresh: 7 classes here, 10 in"):
        network = models.create(TINY, num_classes=7, weights=path)
    assert network.output_shape == (None, 7)
    assert "class_names" not in network.metadata
    whole = models.create(TINY, weights=path)
    for layer in whole.layers:
        if layer.name != "head":
            for a, b in zip(layer.get_weights(), network.get_layer(layer.name).get_weights(), strict=True):
                np.testing.assert_array_equal(a, b)


@pytest.mark.once
def test_parts_and_forms_of_a_network_take_the_same_file(tmp_path: Path) -> None:
    path = pytorchcv_file(tmp_path / "weights.npz", TINY)
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype("float32")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        whole = models.create(TINY, weights=path)
        backbone = models.create(TINY, weights=path, include_top=False)
        stages = models.create(TINY, weights=path, features=["stage1", "stage3"])
        paths = models.create(TINY, weights=path, form="b")
    logits, by_paths, features, stage3 = (
        keras.ops.convert_to_numpy(outputs)
        for outputs in (whole(images), paths(images), backbone(images), stages(images)["stage3"])
    )
    assert np.isfinite(logits).all()
    np.testing.assert_allclose(by_paths, logits, atol=1e-5 * np.abs(logits).max())
    np.testing.assert_array_equal(features, stage3)
    assert "class_names" not in backbone.metadata


@pytest.mark.once
def test_what_the_weights_expect_travels_through_saving(tmp_path: Path) -> None:
    source = pytorchcv_file(tmp_path / "weights.npz", TINY)
    timm = {"mean": [0.1, 0.2, 0.3], "std": [0.5] * 3, "crop_pct": 0.9, "interpolation": "bicubic"}
    config = {"architecture": "none", "pretrained_cfg": {**timm, "input_size": [3, 40, 48]}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    models.create(TINY, weights=source).save(tmp_path / "model.keras")
    network = keras.saving.load_model(tmp_path / "model.keras")
    assert network.input_shape == (None, 40, 48, 3)
    preprocessing = network.metadata["preprocessing"]
    assert [list(preprocessing["mean"]), preprocessing["interpolation"]] == [[0.1, 0.2, 0.3], "bicubic"]
    assert (preprocessing["crop"], network.metadata["weights"]["publisher"]) == (0.9, "pytorchcv")
    assert len(network.metadata["class_names"]) == 10


@pytest.mark.once
@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"pretrained_cfg": {"mean": [1, 2]}}, "not enough values"),
        ({"pretrained_cfg": {"interpolation": "cubic"}}, "interpolation='cubic': not of nearest"),
        ({"pretrained_cfg": {"std": [0.5, 0.0, 0.5]}}, "must be positive"),
        ({"pretrained_cfg": {"crop_pct": 0}}, "crop=0.0: the share of the side"),
        ({"pretrained_cfg": {"input_size": 224}}, "not iterable"),
    ],
)
def test_a_damaged_configuration_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"config.json is damaged: .*{message}"):
        input_of("timm", "ResNet", config, (224, 224))


@pytest.mark.once
def test_lukemelas_input_is_tensorflows() -> None:
    changes, size = input_of("lukemelas", "EfficientNet-Lite", {}, (300, 300))
    assert size == (280, 280)
    assert int(280 / changes["crop"]) == 312
    np.testing.assert_allclose(np.array([changes["mean"], changes["std"]]) * 255, [3 * [127], 3 * [128]])


@pytest.mark.once
def test_the_wrong_family_and_unknown_names_are_said(tmp_path: Path) -> None:
    path = pytorchcv_file(tmp_path / "weights.npz", TINY)
    with pytest.raises(UserError, match=r"holds a network of .*CIFAR ResNeXt in pytorchcv's names, not MobileNet v1"):
        models.create("mobilenet_wd4", weights=path)
    np.savez(tmp_path / "unknown.npz", **{"encoder.weight": np.zeros(3)})
    with pytest.raises(
        UserError, match=r"has unknown names \(encoder\): CIFAR ResNeXt is read in the names of pytorch"
    ):
        models.create(TINY, weights=tmp_path / "unknown.npz")
    with pytest.raises(UserError, match="MNIST is read in the names of no publisher"):
        models.create("mnist_cnn", weights=tmp_path / "unknown.npz")


@pytest.mark.once
@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere.pth", "nowhere.pth does not exist: name a file of weights"),
        ("package:no_such_package", "there is no installed package 'no_such_package'"),
        ("package:keras", "carries no such weight file"),
        ("hf:resnet50", "is no repository; write hf:owner/name"),
    ],
)
def test_sources_that_are_none(source: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        models.create("resnet18", weights=source)


@pytest.mark.once
def test_a_package_is_looked_up_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "carrier"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('this was run')")
    pytorchcv_file(package / "models" / "one.npz", TINY)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert models.create(TINY, weights="package:carrier").metadata["weights"]["publisher"] == "pytorchcv"
    pytorchcv_file(package / "two.npz", TINY, seed=1)
    with pytest.raises(
        UserError, match=r"carries several: name one of models/one.npz, two.npz, as package:carrier/PATH"
    ):
        models.create(TINY, weights="package:carrier")
    assert models.create(TINY, weights="package:carrier/two.npz").count_params()


@pytest.mark.once
def test_timms_configuration_says_which_efficientnet_it_is() -> None:
    from groupwise.models.pretrained import origin_of

    class Opened:
        publisher, num_classes, stem = "timm", 1000, "model"

        def __init__(self, architecture: str) -> None:
            self.config = {"architecture": architecture}

        def arguments(self, own: Any) -> dict[str, Any]:
            return {}

        def shape(self, slot: str) -> tuple[int, ...]:
            return (1000,)

    tensorflows, pytorchs = "tf_efficientnet_lite0", "efficientnet_lite0"
    origin: Any = origin_of(Opened(tensorflows), models.find(pytorchs), {})  # type: ignore[arg-type]
    assert (origin.arguments["padding"], origin.arguments["epsilon"]) == ("same", 1e-3)
    assert origin.preprocessing.mean == (0.5, 0.5, 0.5)
    origin = origin_of(Opened(pytorchs), models.find(tensorflows), {})  # type: ignore[arg-type]
    assert (origin.arguments["padding"], origin.arguments["epsilon"]) == (None, 1e-5)
    assert origin.preprocessing.mean == (0.485, 0.456, 0.406)


@pytest.mark.once
def test_a_network_takes_its_publishers_habits_whatever_name_it_goes_by(tmp_path: Path) -> None:
    """Timm's MobileNet has ReLU6 and another mean; pytorchcv's ShuffleNet v2 has no padding in its first pool."""
    path = pytorchcv_file(tmp_path / "mobilenet.npz", "mobilenet_w1")
    network = models.create("mobilenetv1_100", weights=path)
    assert network.get_layer("stem_bn").activation is keras.activations.relu
    assert network.metadata["preprocessing"]["mean"] == [0.485, 0.456, 0.406]
    path = pytorchcv_file(tmp_path / "shufflenet.npz", "shufflenetv2_wd2")
    network = models.create("shufflenet_v2_x0_5", weights=path, input_shape=(64, 64, 3))
    assert network.get_layer("stem_pool").explicit == ((0, 1), (0, 1))
    network.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    images = np.random.default_rng(0).normal(size=(1, 64, 64, 3)).astype("float32")
    np.testing.assert_array_equal(*(keras.ops.convert_to_numpy(m(images, training=False)) for m in (network, again)))


@pytest.mark.once
def test_a_declared_network_of_another_depth_is_not_built_under_the_name(tmp_path: Path) -> None:
    path = pytorchcv_file(tmp_path / "weights.npz", "resnext14_16x4d")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "resnext14_16x4d", "pretrained_cfg": {}}))
    with pytest.raises(UserError, match="does not fit this network"):
        models.create("resnext26_16x4d", weights=path)


@pytest.mark.once
def test_a_file_without_a_head(tmp_path: Path) -> None:
    path = pytorchcv_file(tmp_path / "weights.npz", TINY, **{"output.fc.weight": None, "output.fc.bias": None})
    assert models.create(TINY, weights=path, include_top=False).count_params()
    with pytest.warns(UserWarning, match="the head is fresh: 7 classes here, none in"):
        assert models.create(TINY, num_classes=7, weights=path).output_shape == (None, 7)


@pytest.mark.once
def test_canonical_keys_of_three_frameworks() -> None:
    assert list(canonical_keys(["fc.weight", "bn.num_batches_tracked"])) == ["fc.weight"]
    keras_keys = canonical_keys(
        ["conv1_bn.gamma", "conv1_bn.moving_variance", "probs.kernel", "x_2_conv.depthwise_kernel"]
    )
    assert list(keras_keys) == ["conv1_bn.weight", "conv1_bn.running_var", "probs.weight", "x_2_conv.weight"]


@pytest.mark.once
def test_imagenets_classes() -> None:
    classes = imagenet_classes()
    assert (len(classes), len(set(classes.values()))) == (1000, 1000)
    assert classes["n02123045"] == "tabby"
    assert list(classes) == sorted(classes)
    assert list(classes).index("n02123045") == 281
