"""Every rewrite keeps all that a drawn model means; `python -m tests.drawn_rewrites` tries any number of them."""

import os
import warnings

import pytest

from tests.drawn_models import draw
from tests.drawn_rewrites import failures

COUNT = int(os.environ.get("GROUPWISE_DRAWN_MODELS", "30"))


@pytest.mark.parametrize("seed", range(COUNT))
def test_every_rewrite_keeps_what_a_drawn_model_means(seed: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = [f"{name}: {difference}" for name, difference in failures(draw(seed))]
    assert not found, f"{draw(seed)}\n" + "\n".join(found)
