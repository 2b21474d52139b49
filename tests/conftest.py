"""Settings for every test: quiet frameworks, drawn cases that are the same in each run."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import hypothesis
import keras
import pytest

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
