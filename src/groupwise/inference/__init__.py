"""Using a network without training it: preprocessing, prediction, evaluation, and where it looked.

Importing this package imports no framework; its members do.
"""

from typing import TYPE_CHECKING

from groupwise.lazy import members_at_use

if TYPE_CHECKING:
    from groupwise.inference.evaluation import Evaluation, evaluate
    from groupwise.inference.networks import load_network
    from groupwise.inference.prediction import Prediction, predict_images
    from groupwise.inference.preprocessing import make_batches
    from groupwise.inference.saliency import Explainer
else:
    __getattr__, __dir__ = members_at_use(
        __name__,
        {
            "Evaluation": "evaluation",
            "Explainer": "saliency",
            "Prediction": "prediction",
            "evaluate": "evaluation",
            "load_network": "networks",
            "make_batches": "preprocessing",
            "predict_images": "prediction",
        },
    )

__all__ = ["Evaluation", "Explainer", "Prediction", "evaluate", "load_network", "make_batches", "predict_images"]
