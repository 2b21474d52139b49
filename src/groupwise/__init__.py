"""Fast grouped, depthwise and separable convolutions for Keras 3, and the networks made of them."""

from typing import TYPE_CHECKING

from groupwise.lazy import members_at_use

if TYPE_CHECKING:
    from groupwise import (
        data,
        diagnosis,
        errors,
        explain,
        export,
        inference,
        layers,
        models,
        ops,
        recipes,
        report,
        rewrite,
        serving,
        training,
        weights,
    )
    from groupwise.diagnosis import diagnose
    from groupwise.errors import UserError
    from groupwise.ops import explain_routing
    from groupwise.rewrite import accelerate
    from groupwise.training import train
    from groupwise.weights.keras_files import load_keras_weights
else:
    __getattr__, __dir__ = members_at_use(
        __name__,
        {
            "UserError": "errors",
            "accelerate": "rewrite",
            "diagnose": "diagnosis",
            "explain_routing": "ops",
            "load_keras_weights": "weights.keras_files",
            "train": "training",
        },
        modules=(
            *("data", "diagnosis", "errors", "explain", "export", "inference", "layers"),
            *("models", "ops", "recipes", "report", "rewrite", "serving", "training", "weights"),
        ),
    )

__version__ = "0.1.0"

__all__ = [
    "UserError",
    "__version__",
    "accelerate",
    "data",
    "diagnose",
    "diagnosis",
    "errors",
    "explain",
    "explain_routing",
    "export",
    "inference",
    "layers",
    "load_keras_weights",
    "models",
    "ops",
    "recipes",
    "report",
    "rewrite",
    "serving",
    "train",
    "training",
    "weights",
]
