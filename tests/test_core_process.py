"""The C core in its process: how many threads, what memory it keeps, what the environment says."""

import mmap
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from groupwise import machine
from groupwise.core import convolution, library
from groupwise.spec import ConvSpec
from tests.passes import random_arrays

pytestmark = pytest.mark.once
needs_core = pytest.mark.skipif(
    not library.is_available(), reason=f"{library.path()}: the core is off, or does not load"
)


def fresh(code: str, **environment: str) -> str:
    """Run `code` in a fresh process, in which `warned` lists the warnings shown; return what it prints."""
    before = (
        "import warnings; warned = []\n"
        "warnings.showwarning = lambda message, *rest: warned.append(str(message))\n"
        "import numpy as np\nfrom groupwise.core import convolution, library\nfrom groupwise.spec import ConvSpec\n"
        "spec = ConvSpec.of((4, 20, 20, 32), (3, 3, 4, 32), 8)\n"
        "x, w = np.ones(spec.input_shape, 'float32'), np.ones(spec.kernel_shape, 'float32')\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", before + code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


@needs_core
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_threads_follow_affinity_and_the_number_that_was_set() -> None:
    core, before = library.load(), os.sched_getaffinity(0)
    assert core.gw_threads() == machine.usable_cores()
    try:
        os.sched_setaffinity(0, {min(before)})
        assert core.gw_threads() == machine.usable_cores() == 1
        core.gw_set_threads(2**62)
        assert core.gw_threads() == 4096
        core.gw_set_threads(3)
        assert core.gw_threads() == 3
    finally:
        core.gw_set_threads(0)
        os.sched_setaffinity(0, before)
    assert core.gw_threads() == machine.usable_cores()


def write_system(root: Path, groups: str | None, files: dict[str, str]) -> None:
    """Write a process's list of control groups, and files of these."""
    texts = {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    if groups is not None:
        texts["proc/self/cgroup"] = groups
    for name, text in texts.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


@pytest.mark.parametrize(
    ("groups", "files", "limit"),
    [
        (None, {}, None),
        ("nonsense\n", {"cpu.max": "100000 100000\n"}, None),
        ("0::/\n", {}, None),
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/\n", {"cpu.max": "100000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "5000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "nonsense\n"}, None),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "400000 100000\n", "cpu.max": "900000 100000"}, 4),
        ("0::/a/b\n", {"a/b/cpu.max": "250000 50000\n", "a/cpu.max": "800000 100000\n"}, 5),
        ("0::/outside/of/this\n", {"cpu.max": "200000 100000\n"}, 2),
        ("0::/../outside\n", {"cpu.max": "200000 100000\n"}, 2),
        ("7:cpu,cpuacct:/a\n", {"cpu/a/cpu.cfs_quota_us": "-1\n", "cpu/a/cpu.cfs_period_us": "100000\n"}, None),
        ("7:cpuacct,cpu:/a\n", {"cpu/cpu.cfs_quota_us": "210000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ("7:cpuset:/a\n", {"cpu/a/cpu.cfs_quota_us": "100000\n", "cpu/a/cpu.cfs_period_us": "100000\n"}, None),
        ("1:cpu:/\n0::/\n", {"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
    ],
)
def test_a_containers_limit_is_read(
    groups: str | None, files: dict[str, str], limit: int | None, tmp_path: Path
) -> None:
    """By Python and by the core, which count the same cores."""
    write_system(tmp_path, groups, files)
    assert machine.cpu_limit(tmp_path) == limit
    if library.is_available():
        assert library.load().gw_cpu_limit(os.fsencode(tmp_path)) == (limit or 0)


@pytest.mark.parametrize(
    ("groups", "files", "free"),
    [
        (None, {}, 8192),
        ("0::/\n", {"memory.max": "max\n", "memory.current": "1\n"}, 8192),
        ("0::/\n", {"memory.max": "9000000\n", "memory.current": "1000000\n"}, 8192),
        ("0::/a/b\n", {"a/memory.max": "3000\n", "a/memory.current": "1000\n", "a/b/memory.max": "max\n"}, 2000),
        ("0::/a\n", {"a/memory.max": "3000\n", "a/memory.current": "4000\n"}, 0),
        (
            "4:memory:/a\n",
            {"memory/a/memory.limit_in_bytes": "5000\n", "memory/a/memory.usage_in_bytes": "10\n"},
            4990,
        ),
    ],
)
def test_a_containers_free_memory_is_read(groups: str | None, files: dict[str, str], free: int, tmp_path: Path) -> None:
    write_system(tmp_path, groups, files)
    (tmp_path / "proc").mkdir(exist_ok=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 16 kB\nMemAvailable: 8 kB\n")
    assert machine.free_memory(tmp_path) == free


@needs_core
def test_a_forked_child_starts_its_own_threads() -> None:
    code = """
import os, signal
run = lambda: convolution.convolve(convolution.FORWARD, spec, x, w)
before = run()
child = os.fork()
if child == 0:
    signal.alarm(60)
    os._exit(0 if np.array_equal(run(), before) else 1)
print(os.waitpid(child, 0)[1], np.array_equal(run(), before))
"""
    assert fresh(code, GROUPWISE_THREADS="3") == "0 True\n"


@needs_core
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from Linux's /proc")
def test_without_threads_to_be_had_the_caller_does_the_work() -> None:
    """No memory is left for a thread's stack; later calls have threads again, and nothing was kept for them."""
    code = """
import os, resource
run = lambda: convolution.convolve(convolution.FORWARD, spec, x, w)
threads = lambda: len(os.listdir("/proc/self/task"))
used = lambda kind: int(open("/proc/self/statm").read().split()[kind]) * os.sysconf("SC_PAGESIZE")
library.load().gw_set_threads(1)
alone, before = run(), threads()
library.load().gw_set_threads(3)
resource.setrlimit(resource.RLIMIT_AS, (used(0) + (4 << 20), -1))
same = [np.array_equal(run(), alone) for _ in range(100)]
without, resident = threads(), used(1)
for _ in range(10000): run()
grown = used(1) - resident
resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
print(all(same), without - before, np.array_equal(run(), alone), threads() - before, grown)
"""
    *said, grown = fresh(code).split()
    assert said == ["True", "0", "True", "2"]
    assert int(grown) < 1 << 20


@needs_core
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from Linux's /proc")
def test_large_scratch_memory_is_given_back() -> None:
    """It is kept for calls that go on needing it, until they end for good."""
    code = """
import os, resource, threading
# Two taps, 500,000 columns apart: rows of 32 MB.
spec = ConvSpec.of((1, 1, 2, 16), (1, 2, 1, 16), 16, 1, ((0, 0), (0, 499_999)), (1, 500_000))
x, w = np.ones(spec.input_shape, "float32"), np.ones(spec.kernel_shape, "float32")
def run():
    convolution.convolve(convolution.FORWARD, spec, x, w)
def megabytes():
    return int(open("/proc/self/statm").read().split()[0]) * os.sysconf("SC_PAGESIZE") >> 20
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
library.loaded()
before = megabytes()
after = []
for action in (run, run, run, library.release_memory):
    action()
    after.append(megabytes() - before)
run()
first = faults()
for _ in range(20): run()
first = faults() - first
library.release_memory()
threads = len(os.listdir("/proc/self/task"))
thread = threading.Thread(target=lambda: [run() for _ in range(3)])
thread.start()
thread.join()
while len(os.listdir("/proc/self/task")) > threads: pass  # Python joins a little early
thread = megabytes()
library.release_memory()
print(*after, first, thread - megabytes())
"""
    once, twice, thrice, released, faults, after_thread = map(int, fresh(code, GROUPWISE_THREADS="1").split())
    assert once < 4
    assert 29 < twice == thrice < 40
    assert released < 4
    assert faults < 1000  # of 8,000 pages, twenty times
    assert after_thread < 4


@needs_core
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from Linux's /proc")
def test_a_thousand_calls_do_not_grow() -> None:
    code = """
import os
def run():
    y = convolution.convolve(convolution.FORWARD, spec, x, w)
    convolution.convolve(convolution.INPUT_GRADIENT, spec, y, w)
    convolution.convolve(convolution.KERNEL_GRADIENT, spec, x, y)
def used():
    pages, threads = open("/proc/self/statm").read().split()[1], len(os.listdir("/proc/self/task"))
    return int(pages) * os.sysconf("SC_PAGESIZE"), threads
for _ in range(100): run()
before = used()
for _ in range(1000): run()
after = used()
print(after[0] - before[0], after[1] - before[1])
"""
    grown, threads = map(int, fresh(code).split())
    # Each call's output is 200 kB: one kept in a hundred would be 2 MB.
    assert grown < 1 << 20
    assert threads == 0


def memory_flags(address: int) -> list[str]:
    """Return the kernel's flags of the mapping that holds an address, such as "hg": large pages are wanted."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, *rest = line.split()
        if "-" in first:
            start, end = (int(bound, 16) for bound in first.split("-"))
            inside = start <= address < end
        elif inside and first == "VmFlags:":
            return rest
    return []


@needs_core
@pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="this system has no transparent large pages"
)
@pytest.mark.parametrize("pass_", [convolution.FORWARD, convolution.INPUT_GRADIENT])
def test_a_large_result_asks_for_large_pages(pass_: int) -> None:
    spec = ConvSpec.of((1, 256, 256, 64), (1, 1, 1, 64), 64)
    with_image, kernel, _ = random_arrays(spec)
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    out = np.frombuffer(mmap.mmap(-1, with_image.nbytes, flags=private), "float32").reshape(with_image.shape)
    middle = out.ctypes.data + out.nbytes // 2
    assert "hg" not in memory_flags(middle)
    convolution.convolve(pass_, spec, with_image, kernel, out=out)
    np.testing.assert_array_equal(out, with_image * kernel[0, 0, 0])
    assert "hg" in memory_flags(middle)


@needs_core
def test_environment_chooses_threads_and_instruction_set() -> None:
    code = "print(library.load().gw_threads(), library.instruction_set())"
    name = next(name for name in library.instruction_sets() if library.use_instruction_set(name))
    library.use_instruction_set(fresh("print(library.instruction_set())").strip())
    assert fresh(code, GROUPWISE_THREADS="3", GROUPWISE_INSTRUCTION_SET=name).split() == ["3", name]


@needs_core
def test_what_the_environment_asks_for_in_vain_is_said() -> None:
    code = "print(library.load().gw_threads() > 0, *warned, sep='\\n')"
    said = fresh(code, GROUPWISE_THREADS="two", GROUPWISE_INSTRUCTION_SET="sse9").splitlines()
    assert said[0] == "True"
    assert "GROUPWISE_THREADS='two' is ignored: it must be a positive whole number" in said[1]
    assert "GROUPWISE_INSTRUCTION_SET='sse9' is ignored: it must be one of baseline, avx2" in said[2]
    assert len(said) == 3


def test_the_core_can_be_turned_off() -> None:
    code = "print(library.is_available(), library.load.cache_info().misses, warned)"
    assert fresh(code, GROUPWISE_CORE="0") == "False 0 []\n"


@pytest.mark.parametrize("content", ["nothing", "no library", "a library without these functions"])
def test_one_warning_where_the_core_does_not_load(content: str, tmp_path: Path) -> None:
    file = tmp_path / library.path().name
    if content == "no library":
        file.write_text("not a library")
    elif content == "a library without these functions":
        file.symlink_to(np._core._multiarray_umath.__file__)  # type: ignore[attr-defined]
    code = """
print(library.is_available(), library.is_available(), len(warned))
print(warned[0])
try: convolution.convolve(convolution.FORWARD, spec, x, w)
except RuntimeError as error: print(error)
"""
    said, warning, error = fresh(code, GROUPWISE_CORE_FOLDER=str(tmp_path), GROUPWISE_CORE="1").splitlines()
    assert said == "False False 1"
    assert "groupwise runs without its C core" in warning
    assert "g++" in warning
    assert "ask is_available()" in error
