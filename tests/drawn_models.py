"""Keras models drawn from a seed: small, full of what a rewrite could lose. `build(draw(17))` is always the same."""

import contextlib
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np
from keras import layers

from groupwise import models
from tests import drawn_parts as parts
from tests.drawn_steps import GRAPHS, LAYERS, Maker, Step, single
from tests.observing import has_schedule, stepped
from tests.subjects import Data, graph_of

BACKEND = keras.backend.backend()
SHAPES = (*[(8, 6, 4)] * 5, (None, None, 4))  # few, so that JAX has little to compile
POLICIES = ["float32"] * 12 + ["mixed_float16"] * 3 + ["mixed_bfloat16"] * 3 + ["bfloat16"]
if BACKEND != "jax":  # which has no float64 unless it is asked for before it starts
    POLICIES += ["float64"] * 2
HABITS = {"regularised": 0.4, "constrained": 0.15, "mixed": 0.2, "named": 0.5, "frozen": 0.4, "zeros": 0.3}
HABITS |= {"compiled": 0.6, "stepped": 0.2, "attributes": 0.2, "quantized": 0.04}
"""What is drawn into a whole model, and how often."""
SHELLS = ["functional"] * 10 + ["sequential"] * 4 + [name for name in parts.MODELS if name != "functional"]
NETWORKS = ("mnist_cnn", "mnist_cnn_grouped", "mnist_cnn_separable")


@dataclass(frozen=True)
class Plan:
    """What a model is made of.

    Attributes:
        shell: the model's class, "sequential", "self made", or "network" for one of this package's.
        policy: Keras's type policy. habits: see `HABITS`.
        inputs, outputs: the structures: "one", "list", "tuple", "dict" or "nested".
        extra: the second input, if any: "image", "vector", "numbers" or "words" (looked up), "buckets".
        head: what the images end in: "none", "dense", "softmax32".
        ends: what else is returned: "", "twice" (a tensor twice) or "passed" (an input).
    """

    seed: int
    steps: tuple[Step, ...]
    shape: tuple[int | None, ...] = SHAPES[0]
    shell: str = "functional"
    policy: str = "float32"
    habits: frozenset[str] = frozenset()
    inputs: str = "one"
    outputs: str = "one"
    extra: str = ""
    head: str = "none"
    ends: str = ""

    def __str__(self) -> str:
        names = ("shell", "policy", "inputs", "outputs", "extra", "head", "ends")
        plain = Plan(0, ())
        told = [getattr(self, name) for name in names if getattr(self, name) != getattr(plain, name)]
        habits = "+".join(sorted(self.habits))
        return f"seed {self.seed}: {', '.join(filter(None, [*told, habits]))} [{', '.join(map(str, self.steps))}]"


def draw(seed: int) -> Plan:
    """Return the plan of the model that a seed stands for."""
    pick = random.Random(seed)
    shell = pick.choice(SHELLS)
    habits = frozenset(name for name, share in HABITS.items() if pick.random() < share)
    policy = pick.choice(POLICIES)
    if policy.startswith("mixed") and pick.random() < 0.7:
        habits |= {"mixed"}
    if policy in ("float64", "bfloat16"):
        habits -= {"regularised"}  # TensorFlow cannot add up losses of several types
    if pick.random() < 0.03:
        shell = pick.choice(["network", "self made"])
        return Plan(seed, (), shell=shell, habits=habits - {"mixed", "constrained", "regularised"})
    if shell == "sequential":
        steps = _drawn_steps(pick, pick.randint(2, 6), {"nested": 2, **_shares(LAYERS)})
        return Plan(seed, steps, SHAPES[0], shell, policy, habits, head=pick.choice(["none", "dense"]))
    steps = _drawn_steps(pick, pick.randint(1, 5), {"nested": 7, **_shares(GRAPHS), **_halves(LAYERS)})
    extra = pick.choice([""] * 5 + ["image", "image", "vector", "numbers", "buckets", "words"])
    if extra == "words" and BACKEND != "tensorflow":
        extra = "numbers"  # other backends have no strings
    inputs = pick.choice(["list", "tuple", "dict", "nested"]) if extra else pick.choice(["one", "one", "one", "dict"])
    outputs = pick.choice(["one", "list", "list", "tuple", "dict", "dict", "nested"])
    head = pick.choice(["none", "none", "dense", "dense", "softmax32"])
    ends = pick.choice(["", "", "", "", "", "twice", "passed"])
    return Plan(seed, steps, pick.choice(SHAPES), shell, policy, habits, inputs, outputs, extra, head, ends)


def _shares(table: dict[str, Any]) -> dict[str, int]:
    return {kind: share for kind, (share, _) in table.items()}


def _halves(table: dict[str, Any]) -> dict[str, float]:
    return {kind: share / 2 for kind, (share, _) in table.items()}


def _drawn_steps(pick: random.Random, count: int, shares: dict[str, float]) -> tuple[Step, ...]:
    kinds = pick.choices(list(shares), list(shares.values()), k=count)
    flat = {kind: share for kind, share in shares.items() if kind not in ("nested", "side")}
    return tuple(
        Step(kind, pick.randrange(10**6), _drawn_steps(pick, pick.randint(1, 3), flat) if kind == "nested" else ())
        for kind in kinds
    )


def smaller(plan: Plan) -> Iterator[Plan]:
    """Yield plans with one thing less, to find the least model that shows something."""
    for i, step in enumerate(plan.steps):
        yield replace(plan, steps=plan.steps[:i] + plan.steps[i + 1 :])
        for j in range(len(step.inner)):
            less = replace(step, inner=step.inner[:j] + step.inner[j + 1 :])
            if less.inner:
                yield replace(plan, steps=(*plan.steps[:i], less, *plan.steps[i + 1 :]))
    for habit in sorted(plan.habits):
        yield replace(plan, habits=plan.habits - {habit})
    plain = Plan(plan.seed, plan.steps)
    for name in ("shell", "policy", "extra", "inputs", "outputs", "head", "ends", "shape"):
        # Two inputs need a structure.
        if getattr(plan, name) != getattr(plain, name) and not (name == "inputs" and plan.extra):
            yield replace(plan, **{name: getattr(plain, name)})


def build(plan: Plan) -> keras.Model:
    """Return the model of a plan, with weights and statistics that a rewrite could not guess."""
    keras.backend.clear_session(free_memory=False)  # names count from the beginning
    keras.utils.set_random_seed(plan.seed % 2**31)
    pick = random.Random(f"whole {plan.seed}")
    with _policy(plan.policy):
        if plan.shell == "network":
            model = models.create(pick.choice(NETWORKS))
            model.metadata["class_names"] = ["ant", "bee"]
        elif plan.shell == "self made":
            model = parts.SelfMade(pick.choice([4, 8]))
        elif plan.shell == "sequential":
            model = keras.Sequential([keras.Input(plan.shape), *_stack(plan)], name=pick.choice([None, "stack"]))
        else:
            model = _graph(plan, pick)
    _disturb(model, pick, "zeros" in plan.habits)
    if "frozen" in plan.habits:
        _freeze(model, pick)
    if "attributes" in plan.habits:
        model.note, model.classes_seen = "of the user's", ["ant", "bee"]
        for layer in [each for each in model.layers if not isinstance(each, layers.InputLayer)][::2]:
            layer.note = "of the user's"
    if "quantized" in plan.habits:
        _narrow(model, pick)
    # JAX cannot look numbers up within a compiled step.
    if "compiled" in plan.habits and not (BACKEND == "jax" and plan.extra == "numbers"):
        _compile(model, pick, "stepped" in plan.habits)
    return model


@contextlib.contextmanager
def _policy(name: str) -> Iterator[None]:
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def _stack(plan: Plan) -> list[Any]:
    """Return the layers of a sequential model."""
    make, made, shape = Maker(plan.habits), [], (None, *plan.shape)
    for step in plan.steps:
        make.random = random.Random(step.seed)
        layer = _nested(make, step, shape) if step.kind == "nested" else LAYERS[step.kind][1](make, shape)
        made.append(layer)
        shape = layer.compute_output_shape(shape)
    return [*made, layers.GlobalAveragePooling2D(), layers.Dense(3)] if plan.head != "none" else made


def _nested(make: Maker, step: Step, shape: Any) -> keras.Model:
    """Return a model to be called within another, functional or sequential."""
    inside = Maker(make.habits)
    name = make.common("inner").get("name")
    if all(inner.kind in LAYERS for inner in step.inner) and make.random.random() < 0.5:
        stack = _stack(Plan(step.seed, step.inner, shape[1:], habits=make.habits))
        return keras.Sequential([keras.Input(shape[1:]), *stack], name=name)
    x = inputs = keras.Input(shape[1:])
    x = _run(inside, step.inner, x)
    return keras.Model(inputs, x, name=name)


def _run(make: Maker, steps: tuple[Step, ...], x: Any) -> Any:
    for step in steps:
        make.random = random.Random(step.seed)
        make.seen.append(x)
        if step.kind == "nested":
            model = _nested(make, step, x.shape)
            if make.random.random() < 0.3:
                model.trainable = False
                x = model(x, training=False)
            else:
                x = model(x)
                if x.shape == model.input_shape and make.random.random() < 0.4:
                    x = model(x)
        elif step.kind in GRAPHS:
            x = GRAPHS[step.kind][1](make, x)
        else:
            x = single(make, step.kind, x)
    return x


def _graph(plan: Plan, pick: random.Random) -> keras.Model:
    make = Maker(plan.habits)
    is_named = "named" in plan.habits or plan.inputs in ("dict", "nested")
    image = keras.Input(plan.shape, name="image" if is_named else None)
    inputs = {"image": image}
    x: Any = image
    make.random = random.Random(f"extra {plan.seed}")
    vector = None
    if plan.extra == "image":
        inputs["other"] = keras.Input(plan.shape, name="other" if is_named else None)
        tower = layers.Conv2D(4, 3, padding="same", **make.weighted("tower", "kernel"))
        x = layers.Concatenate()([tower(image), tower(inputs["other"])])
    elif plan.extra:
        inputs["extra"], vector = _extra(plan.extra, "extra" if is_named else None)
    x = _run(make, plan.steps, x)
    make.random = random.Random(f"head {plan.seed}")
    if plan.head != "none" or vector is not None:
        x = _head(make, plan, x, vector)
    outputs = [x, *(side for side in make.sides if side is not x)]
    if len(outputs) == 1 and plan.outputs != "one":
        outputs.append(layers.Conv2D(4, 3, padding="same", **make.weighted("second", "kernel"))(image))
    outputs += {"twice": [x], "passed": [image], "": []}[plan.ends]
    if plan.outputs == "one":
        outputs = outputs[:1]
    kind = parts.MODELS[plan.shell]
    settings = {"labels": ["ant", "bee"]} if plan.shell == "labelled" else {}
    name = pick.choice([None, "drawn"])
    return kind(_struct(plan.inputs, inputs), _struct(plan.outputs, _named(outputs)), name=name, **settings)


def _named(tensors: list[Any]) -> dict[str, Any]:
    return {f"result_{i}": tensor for i, tensor in enumerate(tensors)}


def _struct(kind: str, tensors: dict[str, Any]) -> Any:
    flat = list(tensors.values())
    if kind == "one" and len(flat) == 1:
        return flat[0]
    first, *rest = tensors.items()
    nested = {first[0]: first[1], "rest": [tensor for _, tensor in rest]} if rest else dict(tensors)
    return {"tuple": tuple(flat), "dict": dict(tensors), "nested": nested}.get(kind, flat)


def _extra(kind: str, name: str | None) -> tuple[Any, Any]:
    """Return a second input that is no image, and the vector that is made of it."""
    if kind == "vector":
        tensor = keras.Input((3,), name=name)
        # TensorFlow multiplies its float64 with a float32.
        penalty = "orthogonal_regularizer" if keras.config.dtype_policy().variable_dtype == "float32" else None
        return tensor, layers.Dense(4, activation="relu", kernel_regularizer=penalty)(tensor)
    if kind == "buckets":
        tensor = keras.Input((3,), name=name)
        buckets = layers.Discretization(bin_boundaries=[-0.5, 0.1, 0.6])(tensor)
        # TensorFlow counts nothing in half precision.
        return tensor, layers.Dense(4)(layers.CategoryEncoding(4, output_mode="count", dtype="float32")(buckets))
    if kind == "numbers":
        tensor = keras.Input((2,), dtype="int64", name=name)
        return tensor, layers.Dense(4)(layers.IntegerLookup(vocabulary=[3, 7, 9], output_mode="multi_hot")(tensor))
    tensor = keras.Input((2,), dtype="string", name=name)
    lookup = layers.StringLookup()
    lookup.adapt(np.array(["ant", "bee", "bee", "cat"]))
    return tensor, layers.Flatten()(layers.Embedding(4, 3)(lookup(tensor)))


def _head(make: Maker, plan: Plan, x: Any, vector: Any) -> Any:
    y = layers.GlobalAveragePooling2D()(x)
    if vector is not None:
        y = layers.Concatenate()([y, layers.Activation("linear", dtype=y.dtype)(vector)])
    if make.random.random() < 0.4:
        y = layers.ReLU()(layers.BatchNormalization()(layers.Dense(4, **make.weighted("dense", "kernel"))(y)))
    y = layers.Dense(3, **make.weighted("dense", "kernel", "bias"))(y)
    if plan.head == "softmax32":
        return layers.Activation("softmax", dtype="float32", name="scores")(y)
    return layers.Activation("relu", name="last")(y) if make.random.random() < 0.2 else y


def _disturb(model: keras.Model, pick: random.Random, with_zeros: bool) -> None:
    random_state = np.random.default_rng(pick.randrange(10**6))
    for variable in model.weights:
        kind, shape = variable.path.rsplit("/", 1)[-1], variable.shape
        if kind in ("moving_variance", "gamma"):
            variable.assign(random_state.uniform(0.5, 1.5, shape))
        elif kind in ("beta", "moving_mean", "bias"):
            variable.assign(random_state.normal(0, 0.2, shape))
    for layer in model._flatten_layers():
        if with_zeros and type(layer) is layers.Conv2D and layer.groups == 1 and pick.random() < 0.5:
            kernel, *rest = layer.get_weights()
            # Zero between two groups of channels.
            mask = np.kron(np.eye(2), np.ones((kernel.shape[2] // 2, kernel.shape[3] // 2)))
            if mask.shape == kernel.shape[2:]:
                layer.set_weights([kernel * mask.astype(kernel.dtype), *rest])


def _freeze(model: keras.Model, pick: random.Random) -> None:
    """Freeze layers at any depth, or all and then thaw some."""
    found = list(model._flatten_layers(include_self=False))
    if pick.random() < 0.3:
        model.trainable = False
        if pick.random() < 0.5:
            return
        model.trainable = True
    for layer in found:
        if pick.random() < 0.25:
            layer.trainable = not layer.trainable
    if pick.random() < 0.1:
        for layer in found:
            if isinstance(layer, layers.BatchNormalization):
                layer.trainable = False


def _narrow(model: keras.Model, pick: random.Random) -> None:
    """Quantize dense layers, or give them an adapter of low rank."""
    for layer in model._flatten_layers():
        if type(layer) is layers.Dense and layer.built and layer.dtype_policy.name == "float32":
            if pick.random() < 0.5:
                layer.quantize("int8")
            else:
                layer.enable_lora(2)


def _compile(model: keras.Model, pick: random.Random, with_steps: bool) -> None:
    """Compile a model whose outputs are all its own, for losses and metrics by name, in a list, or one for all."""
    outputs = model.outputs
    if len({id(y) for y in outputs}) < len(outputs) or any(y is x for y in outputs for x in model.inputs):
        return
    losses: list[Any] = ["mse", "mae", keras.losses.Huber(delta=0.5), parts.halved_error]
    options: dict[str, Any] = {}
    if pick.random() < 0.3:
        options["run_eagerly"] = True
    elif pick.random() < 0.3:
        options["jit_compile"] = BACKEND != "torch" and pick.random() < 0.5
    if pick.random() < 0.2 and BACKEND != "torch":  # which has but one
        options["steps_per_execution"] = 2
    options |= _losses(graph_of(model).output, model, pick, losses)
    schedule = keras.optimizers.schedules.ExponentialDecay(0.01, 10, 0.9)
    optimizers: list[Any] = [
        keras.optimizers.SGD(0.01, momentum=0.9),
        keras.optimizers.SGD(schedule),
        keras.optimizers.Adam(1e-3, global_clipnorm=1.0),
        keras.optimizers.RMSprop(1e-3, weight_decay=1e-3),
        "sgd",
    ]
    model.compile(pick.choice(optimizers), **options)
    if with_steps:
        stepped(model, Data.of(model))
        if not has_schedule(model.optimizer):
            model.optimizer.learning_rate = 0.02


def _losses(output: Any, model: keras.Model, pick: random.Random, losses: list[Any]) -> dict[str, Any]:
    is_flat = isinstance(output, list | tuple | dict)
    count = len(keras.tree.flatten(output))
    if count == 1 or not is_flat or any(isinstance(y, list | tuple | dict) for y in _values(output)):
        return {"loss": pick.choice(losses)} | ({"metrics": ["mae"]} if count == 1 and pick.random() < 0.5 else {})
    names = list(output) if isinstance(output, dict) else list(model.output_names)
    if len(set(names)) < len(names):
        return {"loss": "mse"}
    by_name = {name: pick.choice(losses) for name in names}
    weights = {name: float(i + 1) for i, name in enumerate(names)}
    if isinstance(output, dict) or pick.random() < 0.6:
        chosen: dict[str, Any] = {"loss": by_name}
        if pick.random() < 0.5:
            chosen |= {"loss_weights": weights, "metrics": {names[0]: ["mae"]}}
        if pick.random() < 0.3:
            chosen["weighted_metrics"] = {names[-1]: ["mse"]}
        return chosen
    return {"loss": list(by_name.values()), "loss_weights": list(weights.values())}


def _values(output: Any) -> list[Any]:
    return list(output.values()) if isinstance(output, dict) else list(output)
