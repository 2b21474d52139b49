"""Layer-wise decay of the learning rate: against the optimizers' formulas in float64, and to the bit when resumed."""

import re
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from numpy.typing import NDArray

from groupwise import models
from groupwise.errors import UserError
from groupwise.interruption import Interrupted
from groupwise.recipes import Recipe, recipe_of
from groupwise.training.layer_decay import shares_of
from groupwise.training.optimizers import make_optimizer
from tests import tiny as bars
from tests.test_checkpoints import assert_same_end, begin, newest, resume, stop_at

tiny = bars.tiny
DECAY, UPDATES = 0.25, 3
SHARES = {"stem": DECAY**2, "stage1": DECAY, "head": 1.0}
FLAT: dict[str, Any] = {"warm_up": 0.0, "schedule": "constant", "learning_rate": 0.05, "layer_decay": DECAY}
ADAMW: dict[str, Any] = {"optimizer": "adamw", "optimizer_options": {"epsilon": 1e-5}, "weight_decay": 0.5}


def values(variables: list[Any]) -> list[NDArray[np.float64]]:
    return [np.array(keras.ops.convert_to_numpy(variable), np.float64) for variable in variables]


def updated(recipe: Recipe, share: float, weight: Any, gradients: list[Any], scales: list[float]) -> list[Any]:
    """Return a weight after each update, by the formulas of Keras's documentation."""
    rate, adam, found = recipe.learning_rate * share, recipe.optimizer == "adamw", []
    first = second = np.zeros_like(weight)
    for count, (gradient, scale) in enumerate(zip(gradients, scales, strict=True), start=1):
        gradient = gradient * scale
        if weight.ndim > 1:
            weight = weight - weight * recipe.weight_decay * rate
        if adam:
            first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
            bias = np.sqrt(1 - 0.999**count) / (1 - 0.9**count)
            weight = weight - rate * bias * first / (np.sqrt(second) + 1e-5)
        else:
            first = 0.9 * first - rate * gradient
            weight = weight + 0.9 * first - rate * gradient  # Nesterov's
        found.append(weight)
    return found


@pytest.mark.parametrize(
    "changes",
    [{"weight_decay": 0.5, "clip_norm": 1.0}, ADAMW, {**ADAMW, "clip_norm": 1.0, "accumulate": 2, "average": 0.75}],
    ids=["momentum", "adamw", "accumulated"],
)
def test_it_is_the_rate_that_decays(tiny: str, changes: dict[str, Any]) -> None:
    recipe, network = bars.recipe(**FLAT, **changes), models.create("tiny")
    network.get_layer("stage1_conv").trainable = False
    optimizer = make_optimizer(recipe, 10, network)
    variables, random = network.trainable_variables, np.random.default_rng(0)
    before, steps = values(variables), UPDATES * recipe.accumulate
    given = [[random.normal(size=each.shape).astype("float32") for each in before] for _ in range(steps)]
    for gradients in given:
        optimizer.apply([keras.ops.convert_to_tensor(each) for each in gradients])
    each_update = np.split(np.arange(steps), UPDATES)
    sums = [[np.mean([given[step][i] for step in those], 0) for those in each_update] for i in range(len(before))]
    norms = [np.sqrt(sum((sums[i][update] ** 2).sum() for i in range(len(before)))) for update in range(UPDATES)]
    scales = [min(1.0, recipe.clip_norm / norm) if recipe.clip_norm else 1.0 for norm in norms]
    averages = values(optimizer._model_variables_moving_average) if recipe.average else [None] * len(before)
    for variable, weight, gradients, average, found in zip(
        variables, before, sums, averages, values(variables), strict=True
    ):
        share = SHARES[re.split("[_/]", variable.path.removeprefix("tiny/"))[0]]
        wanted = updated(recipe, share, weight, gradients, scales)
        np.testing.assert_allclose(found, wanted[-1], rtol=2e-6, atol=2e-6, err_msg=variable.path)
        if average is not None:
            mean = wanted[0]
            for each in wanted[1:]:
                mean = 0.75 * mean + 0.25 * each
            np.testing.assert_allclose(average, mean, rtol=2e-6, atol=2e-6, err_msg=variable.path)


@pytest.mark.once
def test_muons_two_weight_decays_are_the_shares_of_both(tiny: str) -> None:
    options = {"optimizer": "muon", "optimizer_options": {"adam_weight_decay": 0.5}, "weight_decay": 0.25}
    network = models.create("tiny")
    optimizer = make_optimizer(bars.recipe(**FLAT, **options), 10, network)
    before = values(network.trainable_variables)
    optimizer.apply([keras.ops.zeros(each.shape) for each in network.trainable_variables])
    for variable, weight, found in zip(
        network.trainable_variables, before, values(network.trainable_variables), strict=True
    ):
        share = SHARES[re.split("[_/]", variable.path.removeprefix("tiny/"))[0]]
        decay = {1: 0.0, 2: 0.25}.get(weight.ndim, 0.5)
        np.testing.assert_allclose(found, weight * (1 - 0.05 * share * decay), rtol=1e-6, err_msg=variable.path)
    assert (optimizer.weight_decay, optimizer.adam_weight_decay) == (0.25, 0.5)


def test_a_run_goes_on_to_the_bit(tiny: str, tmp_path: Path) -> None:
    dataset = bars.dataset(tmp_path)
    recipe = bars.recipe(epochs=2, average=0.9, **{**FLAT, **ADAMW, "layer_decay": 1e-3})
    begin(dataset, tmp_path / "whole", recipe)
    with pytest.raises(Interrupted):
        begin(dataset, tmp_path / "parts", recipe, observer=stop_at(2, 2))
    middle = newest(tmp_path / "parts").arrays
    resume(dataset, tmp_path / "parts")
    assert_same_end(tmp_path / "parts", tmp_path / "whole")
    # Adam moves a weight by about the rate at each of the last four steps, and by a millionth of that in the stem.
    end = newest(tmp_path / "whole").arrays
    moved = [np.abs(end[name] - middle[name]).max() for name in sorted(end) if " kernel (" in name]
    assert moved[0] < 1e-6 < 1e-5 < moved[1] < 1e-3 < 1e-2 < moved[2]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_vectors_alone_can_learn_and_nothing_be_taken_off(tiny: str, optimizer: str) -> None:
    network = models.create("tiny")
    for layer in network.layers:
        layer.trainable = layer.name.endswith("_bn")
    common = {**FLAT, "optimizer": optimizer, "optimizer_options": {}, "weight_decay": 0.5}
    for changes in (common, {**common, "layer_decay": 1.0}, {**common, "weight_decay": 0.0}):
        before = values(network.trainable_variables)
        steps = make_optimizer(bars.recipe(**changes), 10, network)
        steps.apply([keras.ops.zeros(each.shape) for each in before])
        for one, other in zip(values(network.trainable_variables), before, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.once
def test_depth_is_counted_from_the_head_in_the_order_of_the_blocks() -> None:
    with keras.StatelessScope():  # without weights' values
        network = models.create("shufflenet_v2_x0_5")
    shares = list(shares_of(network, 0.5).items())
    assert [share for _, share in shares] == sorted(share for _, share in shares)
    depths = {name: -np.log2(share) for name, share in shares}
    assert depths["head"] == 0
    assert {name for name, depth in depths.items() if depth == 1} == {"final_conv", "final_bn"}
    assert {name[:12] for name, depth in depths.items() if depth == 2} == {"stage3_unit4"}
    assert {name for name, depth in depths.items() if depth == 18} == {"stem_conv", "stem_bn"}  # of 16 units


@pytest.mark.once
def test_what_is_no_share_is_refused(tiny: str) -> None:
    settings = bars.RECIPE.as_dict()
    assert recipe_of({**settings, "layer_decay": 1}).layer_decay == 1.0
    for wrong in (0.0, 1.01, -0.5, float("nan")):
        with pytest.raises(UserError, match=rf"layer_decay = {wrong}: is a share of a rate"):
            recipe_of({**settings, "layer_decay": wrong})
    with pytest.raises(
        UserError, match=r"layer_decay = 0.5: optimizer 'nadam' has one rate for all layers; take adamw"
    ):
        make_optimizer(bars.recipe(optimizer="nadam", optimizer_options={}, layer_decay=0.5), 10, models.create("tiny"))
