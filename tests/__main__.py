"""Run the whole suite once for each backend: `python -m tests [--backend NAME ...] [--slow] [pytest's arguments]`.

Keras settles its backend when it is imported, so every backend gets a process of its own. The exit status is that of
the first backend that failed.
"""

import argparse
import importlib.util
import os
import subprocess
import sys
import time

BACKENDS = ("tensorflow", "jax", "torch")


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
    marker = [] if options.slow else ["-m", "not slow"]
    status, lines = 0, []
    for name in chosen:
        print(f"== {name}", flush=True)
        start = time.monotonic()
        environment = {**os.environ, "KERAS_BACKEND": name, "TF_CPP_MIN_LOG_LEVEL": "3"}
        command = [sys.executable, "-m", "pytest", *marker, *arguments]
        code = subprocess.run(command, env=environment, check=False).returncode
        lines.append(f"{name}: {'passed' if code == 0 else f'failed ({code})'} in {time.monotonic() - start:.0f} s")
        status = status or code
    print("\n".join(lines))
    return status


if __name__ == "__main__":
    sys.exit(main())
