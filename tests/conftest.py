"""Settings for every test: quiet frameworks, drawn cases that are the same in each run."""

import os
from collections.abc import Iterator

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import hypothesis
import keras
import pytest

from groupwise import native

hypothesis.settings.register_profile(
    "groupwise",
    deadline=None,
    derandomize=True,
    database=None,
    print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.data_too_large],
)
hypothesis.settings.load_profile("groupwise")


def pytest_report_header() -> str:
    return f"keras backend: {keras.backend.backend()}"


@pytest.fixture(autouse=True)
def _same_numbers() -> None:
    """Seed Python, NumPy and the framework before every test."""
    keras.utils.set_random_seed(20)


@pytest.fixture
def instruction_sets() -> Iterator[list[str]]:
    """The instruction sets that this machine has; afterwards, the one in use and the threads are as before."""
    before = native.instruction_set()
    yield [name for name in native.INSTRUCTION_SETS if native.use_instruction_set(name)]
    native.use_instruction_set(before)
    native.library().gw_set_threads(0)
