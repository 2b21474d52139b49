"""Settings for every test: quiet frameworks, drawn cases that are the same in each run, nothing of the user's cache."""

import os
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# TensorFlow leaves oneDNN out by itself where a CPU has no AVX-512; its own grouped and dilated gradients need it.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ["GROUPWISE_TUNING"] = os.environ["GROUPWISE_COMPILATION_CACHE"] = "0"

import hypothesis
import keras
import pytest

from groupwise.core import library
from groupwise.routing import tuning
from tests.__main__ import SHARE
from tests.frameworks import full_precision

full_precision()

hypothesis.settings.register_profile(
    "groupwise",
    deadline=None,
    derandomize=True,
    database=None,
    print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.data_too_large],
)
hypothesis.settings.load_profile("groupwise")


@pytest.hookimpl(tryfirst=True)  # before others leave some out, so that all backends count alike
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what other backends run of the tests that are marked `shared`."""
    place, count = map(int, os.environ.get(SHARE, "0/1").split("/"))
    cases: Counter[str] = Counter()
    mine, others = list[pytest.Item](), list[pytest.Item]()
    for item in items:
        function = item.nodeid.partition("[")[0]
        number = zlib.crc32(function.encode()) + cases[function]
        cases[function] += 1
        is_shared = item.get_closest_marker("shared") and not item.get_closest_marker("once")
        is_mine = not is_shared or number % count == place
        (mine if is_mine else others).append(item)
    config.hook.pytest_deselected(items=others)
    items[:] = mine


def pytest_report_header() -> str:
    return f"keras backend: {keras.backend.backend()}"


@pytest.fixture(autouse=True)
def _same_numbers() -> None:
    """Seed Python, NumPy and the framework before every test."""
    keras.utils.set_random_seed(20)


@pytest.fixture
def instruction_sets() -> Iterator[list[str]]:
    """The instruction sets that this machine has; afterwards, the one in use and the threads are as before."""
    before = library.instruction_set()
    yield [name for name in library.instruction_sets() if library.use_instruction_set(name)]
    library.use_instruction_set(before)
    library.load().gw_set_threads(0)


@pytest.fixture
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Let what is stored count, in a cache folder of the test's own, which does not exist yet."""
    monkeypatch.setenv("GROUPWISE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("GROUPWISE_TUNING")
    tuning.current.cache_clear()
    yield tmp_path / "cache"
    tuning.current.cache_clear()
