"""Run the whole suite once for each backend: `python -m tests [--backend NAME ...] [--slow] [pytest's arguments]`.

Keras settles its backend when it is imported, so every backend gets a process of its own; as many run side by side as
there are cores. Tests marked `once`, to which all backends are one, run with one of them; the cases of those marked
`shared`, which tell little more on a second backend, with one each, unless all are asked for by `--slow`. One backend
alone prints as it goes, of several each prints when it has ended. The exit status is that of the first that failed.
"""

import argparse
import importlib.util
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed

from groupwise.frameworks import FRAMEWORKS

BACKENDS = sorted(FRAMEWORKS)
ONCE = "torch"
"""Where what is the same on every backend runs, if it is among them: with it, tests that train small networks take a
third of the time that XLA takes to compile them."""

XLA = "--xla_backend_optimization_level=1"
"""The quick suite compiles thousands of small programs once each: with few of LLVM's passes JAX's operations took 0.7
of the time."""

SHARE = "GROUPWISE_TESTS_SHARE"
"""The environment's variable that says which of the backends' shares of the tests a process runs: "1/3" the second."""

OUTCOMES = {0: "passed", 5: "nothing to run"}
"""What is no failure; nothing to run on any backend is one."""


def run(backend: str, arguments: list[str], settings: dict[str, str], is_alone: bool) -> tuple[int, float, str]:
    """Run pytest on one backend; return its exit status, its seconds, and unless it is alone what it printed."""
    start = time.monotonic()
    environment = {"OMP_WAIT_POLICY": "passive", **os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **settings}
    process = subprocess.run(
        [sys.executable, "-m", "pytest", *arguments],
        env={**environment, "KERAS_BACKEND": backend},
        check=False,
        text=True,
        stdout=None if is_alone else subprocess.PIPE,
        stderr=None if is_alone else subprocess.STDOUT,
    )
    return process.returncode, time.monotonic() - start, process.stdout or ""


def selection(slow: bool, once: bool) -> list[str]:
    """Return pytest's arguments that leave out the tests marked slow, or once, unless they are wanted."""
    left_out = [f"not {mark}" for mark, wanted in (("slow", slow), ("once", once)) if not wanted]
    return ["-m", " and ".join(left_out)] if left_out else []


def main() -> int:
    """Run pytest once a backend and print a line for each."""
    parser = argparse.ArgumentParser(prog="python -m tests", description=__doc__.splitlines()[0])
    parser.add_argument("--backend", action="append", choices=BACKENDS, help="only this one (repeatable)")
    parser.add_argument("--slow", action="store_true", help="also the tests marked slow")
    options, arguments = parser.parse_known_args()
    chosen = options.backend or BACKENDS
    missing = [name for name in chosen if importlib.util.find_spec(name) is None]
    if missing:
        print(f"not installed: {', '.join(missing)}; pip install '.[test]', or choose others with --backend")
        return 2
    print(f"== {', '.join(chosen)}", flush=True)
    codes, lines = [], []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        runs = {}
        for place, name in enumerate(chosen):
            marks = selection(slow=options.slow, once=name == (ONCE if ONCE in chosen else chosen[0]))
            settings = {} if options.slow else {SHARE: f"{place}/{len(chosen)}"}
            if name == "jax" and not options.slow:
                settings["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {XLA}".strip()
            runs[pool.submit(run, name, [*marks, *arguments], settings, len(chosen) == 1)] = name
        try:
            for each in as_completed(runs):
                code, seconds, output = each.result()
                outcome = OUTCOMES.get(code, f"failed ({code})")
                codes.append(code)
                lines.append(f"{runs[each]}: {outcome} in {seconds:.0f} s")
                print(f"{output}== {lines[-1]}", flush=True)
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)
            return 130
    if len(lines) > 1:
        print("\n".join(lines))
    return next((code for code in codes if code not in OUTCOMES), min(codes))


if __name__ == "__main__":
    sys.exit(main())
