"""`groupwise.diagnose`: each fault is found where it is, and its healthy twin is left in peace."""

import inspect
import re
from typing import Any

import keras
import numpy as np
import pytest

from groupwise import UserError, diagnose, models
from groupwise.data import load_dataset
from groupwise.diagnosis import Diagnosis, Weight, mend
from groupwise.diagnosis.applications import MODULES
from groupwise.diagnosis.trial import Trial
from groupwise.rewrite import report_of
from tests.faults import CLASSES, FAULTS, Case, Fault, data, norm
from tests.healthy import HEALTHY
from tests.peers import slow_unless


def _diagnosis(case: Case) -> Diagnosis:
    return diagnose(case.model, case.data, **case.options)


# What frameworks compute each in its own way; other findings rest on graphs, weights and labels.
BY_FRAMEWORK = ("dead units", "gradient", "signal", "learning rate", "trainable", "epsilon", "without normalisation")


def _parameters() -> list[Any]:
    marks = {
        fault: [] if any(words in fault.finding for words in BY_FRAMEWORK) else [pytest.mark.once] for fault in FAULTS
    }
    return [pytest.param(fault, marks=marks[fault], id=fault.finding) for fault in FAULTS]


@pytest.mark.parametrize("fault", _parameters())
def test_faults_are_found_and_healthy_twins_are_not(fault: Fault) -> None:
    case = fault.build()
    before = [np.array(value) for value in case.model.get_weights()]
    found = {finding.name: finding for finding in _diagnosis(case).findings}
    assert fault.finding in found, f"only {list(found)}"
    if fault.where is not None:
        assert found[fault.finding].where == fault.where
    for value, now in zip(before, case.model.get_weights(), strict=True):
        np.testing.assert_array_equal(value, now)
    assert fault.finding not in {finding.name for finding in _diagnosis(fault.healthy()).findings}


@pytest.mark.parametrize("name", HEALTHY)
@pytest.mark.shared
def test_what_is_healthy_is_left_in_peace(name: str) -> None:
    found = _diagnosis(HEALTHY[name]())
    assert not found.findings, str(found)
    assert not found.notes


@pytest.mark.once
def test_networks_of_keras_applications_are_known_by_name() -> None:
    builders = [getattr(keras.applications, name) for name in dir(keras.applications) if name[0].isupper()]
    names = [inspect.signature(builder).parameters["name"].default for builder in builders]
    named = [keras.applications.MobileNet, keras.applications.MobileNetV2]
    names += [build(weights=None, alpha=0.35, input_shape=(32, 32, 3), include_top=False).name for build in named[1:]]
    names += [named[0](weights=None, alpha=0.25, input_shape=(32, 32, 3), include_top=False).name]
    found = {module for name in names for pattern, module in MODULES.items() if re.fullmatch(pattern, name or "")}
    assert found == {*MODULES.values()}


@pytest.mark.shared
def test_nothing_of_a_model_changes() -> None:
    inputs = keras.Input((12, 12, 3))
    x = keras.layers.Dropout(0.5)(keras.layers.BatchNormalization()(keras.layers.Conv2D(8, 3)(inputs)))
    outputs = keras.layers.Dense(CLASSES)(keras.layers.GlobalAveragePooling2D()(x))
    losses = {}
    for looks in (False, True):
        keras.utils.set_random_seed(5)
        model = keras.models.clone_model(keras.Model(inputs, outputs))
        model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        model.fit(*data(), epochs=1, verbose=0, shuffle=False)
        if looks:
            diagnose(model, data())
            assert all(getattr(v.value, "grad", None) is None for v in model.trainable_variables)
        losses[looks] = model.fit(*data(), epochs=1, verbose=0, shuffle=False).history["loss"]
    assert losses[True] == losses[False]


def test_what_is_not_built_is_built_first() -> None:
    model = keras.Sequential([keras.layers.Conv2D(8, 3), norm(), keras.layers.Flatten(), keras.layers.Dense(CLASSES)])
    found = diagnose(model, data())
    assert not found.notes
    np.testing.assert_array_equal(model.get_layer("norm").moving_mean, np.zeros(8))


def test_blocks_whose_layers_have_the_same_names_are_all_seen() -> None:
    class Block(keras.layers.Layer):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.inner = keras.layers.Dense(4, name="inner")

        def call(self, inputs: Any) -> Any:
            return self.inner(inputs)

    class Own(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = Block(name="first"), Block(name="second")

        def call(self, inputs: Any) -> Any:
            return self.second(self.first(inputs))

    model = Own()
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    rows = diagnose(model, (np.ones((8, 4), "float32"), np.arange(8) % 4)).rows
    assert [row.kind for row in rows] == ["Dense", "Dense"]


def test_what_cannot_be_run_is_said_in_a_sentence() -> None:
    class Fails(keras.layers.Layer):
        fails = False

        def call(self, inputs: Any) -> Any:
            if self.fails:
                raise KeyError("nothing works")
            return inputs

    inputs = keras.Input((12, 12, 3))
    model = keras.Model(inputs, Fails()(inputs))
    Fails.fails = True
    with pytest.raises(UserError, match=r"cannot be run on the images: .*nothing works"):
        diagnose(model)


def test_findings_come_in_the_order_of_their_weight() -> None:
    inputs = x = keras.Input((12, 12, 3))
    for place, trainable in enumerate((True, False)):
        x = keras.layers.DepthwiseConv2D(3, padding="same", name=f"depthwise{place}")(x)
        x = keras.layers.Conv2D(16, 1, kernel_initializer="ones", trainable=trainable, name=f"pointwise{place}")(x)
    found = diagnose(keras.Model(inputs, x)).findings
    assert [finding.weight for finding in found] == sorted((finding.weight for finding in found), reverse=True)
    assert found[0].name == "pointwise kernel of one channel"
    assert found[0].weight is Weight.STOPS
    assert str(found[0]).startswith(
        "pointwise kernels are frozen and have the same weights for each of their 16 outputs"
    )


@pytest.mark.shared
def test_rows_are_what_numpy_computes() -> None:
    case = FAULTS[0].healthy()
    images = np.random.default_rng(0).normal(size=(16, 12, 12, 3)).astype("float32")
    rows = {row.name: row for row in diagnose(case.model, (images, np.arange(16) % CLASSES)).rows}
    stem = case.model.get_layer("stem")
    outputs = keras.ops.convert_to_numpy(stem(images)).astype(np.float64)
    expected = outputs.mean(), outputs.std(), np.sqrt(outputs.var(axis=0).mean())
    np.testing.assert_allclose((rows["stem"].mean, rows["stem"].deviation, rows["stem"].signal), expected, rtol=1e-4)
    # 32 channels: the true fan-in of a 3x3 depthwise kernel, and the one of a dense kernel of its shape.
    assert (rows["separable0"].fan_in, rows["separable0"].assumed_fan_in) == (9, 9 * 32)


def test_gradients_are_those_of_the_loss() -> None:
    inputs = keras.Input((3,))
    outputs = keras.layers.Dense(1, use_bias=False, kernel_initializer="ones", name="dense")(inputs)
    model = keras.Model(inputs, outputs)
    model.compile(keras.optimizers.SGD(0.5), "mse")
    images, labels = np.array([[1.0, 2.0, 3.0], [0.0, 1.0, 0.0]], "float32"), np.zeros((2, 1), "float32")
    # The loss is the mean of (w x)^2, its gradient the mean of 2 (w x) x: (6, 13, 18); the weights' norm is sqrt(3).
    norm = np.sqrt(6.0**2 + 13.0**2 + 18.0**2) / np.sqrt(3)
    (row,) = diagnose(model, (images, labels)).rows
    np.testing.assert_allclose((row.gradient, row.update), (norm, norm / 2), rtol=1e-5)


def test_a_model_with_a_program_of_its_own() -> None:
    class Own(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.first = keras.layers.Dense(8, activation="relu", bias_initializer=keras.initializers.Constant(-100.0))
            self.last = keras.layers.Dense(3)

        def call(self, inputs: Any) -> Any:
            return self.last(self.first(inputs))

    images = np.random.default_rng(0).normal(size=(64, 5)).astype("float32")
    model = Own()
    with pytest.raises(UserError, match="give it some"):
        diagnose(model)
    found = diagnose(model, (images, np.arange(64) % 3))
    assert "dead units" in {finding.name for finding in found.findings}
    assert found.notes == ("it computes in a method of its own: how its layers are connected was not looked at",)


@pytest.mark.parametrize("data", [np.zeros(3), [np.zeros(3)], [], 5])
def test_what_gives_no_pairs_is_refused(data: Any) -> None:
    with pytest.raises(UserError, match="must give pairs of images and labels"):
        diagnose(FAULTS[0].healthy().model, data)


SIZES = {"mnist_cnn": 28, "shufflenet_g3_wd4": 64, "shufflenet_g1_wd4": 64, "mobilenet_wd4": 64}
OTHERS = ["resnext26_32x4d", "seresnext26_32x4d", "senet16", "shufflenetv2_wd2", "efficientnet_lite0", "xception41"]
OTHERS += ["resnet18", "legacy_xception", "resnext20_32x4d_cifar10", "groupnet_cifar10", "mnist_cnn_separable"]


@pytest.mark.once
@pytest.mark.parametrize("name", slow_unless(SIZES, [*SIZES, *OTHERS]))
def test_no_false_alarm_on_our_networks(name: str) -> None:
    height, _, channels = models.find(name).input_shape
    side = SIZES.get(name, min(height, 96))
    found = diagnose(models.create(name, input_shape=(side, side, channels)))
    assert not found.findings, str(found)


def mission() -> keras.Model:
    """Return a separable network that stays at chance, for three reasons."""
    inputs = x = keras.Input((28, 28, 1))
    for filters, strides in ((32, 2), (32, 1), (64, 2), (64, 1)):
        x = keras.layers.DepthwiseConv2D(3, strides, padding="same", depth_multiplier=8 // x.shape[-1] or 1)(x)
        x = keras.layers.Conv2D(
            filters, 1, use_bias=False, kernel_initializer="ones", trainable=False, activation="relu"
        )(x)
    return keras.Model(inputs, keras.layers.Dense(10)(keras.layers.GlobalAveragePooling2D()(x)), name="separable")


class Falling(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule that no file could name."""

    def __call__(self, step: Any) -> Any:
        return 0.1 / (keras.ops.cast(step, "float32") + 1)


@pytest.mark.once
def test_the_range_test_trains_as_the_model_was_compiled() -> None:
    inputs = keras.Input((12, 12, 3))
    x = keras.layers.GlobalAveragePooling2D()(norm()(keras.layers.Conv2D(12, 3)(inputs)))
    model = keras.Model(inputs, {name: keras.layers.Dense(CLASSES, name=name)(x) for name in ("a", "b")})
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    images, labels = data()
    given = (images, {"a": labels, "b": labels})
    losses, weights = {"a": loss, "b": loss}, {"a": 1.0, "b": 1e4}
    model.compile(keras.optimizers.SGD(0.05), losses, loss_weights=weights, run_eagerly=True)
    assert [finding.name for finding in diagnose(model, given).findings] == ["learning rate too large"]
    model.compile(keras.optimizers.SGD(0.05), losses)
    assert not diagnose(model, given).findings


@pytest.mark.once
def test_an_optimizer_that_cannot_be_made_anew_is_left_alone() -> None:
    model = keras.Sequential([keras.Input((12, 12, 3)), keras.layers.Flatten(), keras.layers.Dense(CLASSES)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(Falling(), clipnorm=1e-4), loss)
    found = diagnose(model, data(), learning_rate=20.0)
    assert [note.partition(":")[0] for note in found.notes] == ["the optimizer's steps were not looked at"]
    assert not found.findings
    model.compile(keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.05)), loss)
    assert not diagnose(model, data(), learning_rate=0.05).findings


@pytest.mark.shared
def test_the_mended_network_learns() -> None:
    model, dataset = mission(), load_dataset("digits")
    reasons = {finding.name for finding in diagnose(model).findings}
    assert {"depthwise fan-in", "pointwise kernel of one channel", "separable without normalisation"} <= reasons
    mended = mend(model, batch_norm=True)
    assert not diagnose(mended).findings
    accuracies = {}
    for name, network in (("before", model), ("after", mended)):
        trial = Trial.of(network, dataset, 32)
        network.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.01, 10 * 45)))
        accuracies[name] = trial.accuracy_after(10)
    assert accuracies["before"] < 0.5
    assert accuracies["after"] > 0.97


def test_mending_leaves_what_was_trained() -> None:
    inputs = keras.Input((8, 8, 16))
    trained = keras.layers.SeparableConv2D(16, 3, name="trained")
    model = keras.Model(inputs, keras.layers.SeparableConv2D(16, 3, name="fresh", activation="relu")(trained(inputs)))
    depthwise, *others = trained.get_weights()
    trained.set_weights([10 * depthwise, *others])
    mended = mend(model)
    assert [change.layer for change in report_of(mended).changes] == ["fresh"]
    np.testing.assert_array_equal(mended.get_layer("trained").depthwise_kernel, 10 * depthwise)
    fresh = keras.ops.convert_to_numpy(mended.get_layer("fresh").depthwise_kernel)
    assert 0.8 < fresh.std() * 3 < 1.2
    for place in (1, 2):  # the pointwise kernel and the bias
        np.testing.assert_array_equal(
            mended.get_layer("fresh").get_weights()[place], model.get_layer("fresh").get_weights()[place]
        )
    # What gives the outputs is left as it is.
    inside = mend(model, batch_norm=True)
    assert [layer.name for layer in inside.layers[1:]] == ["trained", "trained_norm", "fresh"]
