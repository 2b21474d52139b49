"""How long reading published weights takes, and how much memory, against timm on the same file.

`KERAS_BACKEND=torch python -m benchmarks.loading --output benchmarks/results/loading.md`, once for each backend. Rivals
take turns in one process. "create" is from the name and the file to the network, as a user asks for it: timm's
`create_model(name, checkpoint_path=)` and our `create(name, weights=)`. "load" is into a network that exists. Memory is
what the process's resident memory grows by at most while it creates the network, over the file's size; the network's
own weights are 1.0 of it.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras

from benchmarks.memory import with_growth
from benchmarks.peers import without_compiled_operations
from benchmarks.tables import merge_rows, table
from benchmarks.timing import alternate, environment, ratio, timed
from groupwise import models
from groupwise.models.pretrained import load_pretrained


def print_growth(create: Callable[[], Any]) -> None:
    """Print by how many bytes the resident memory grows at most while a network is created."""
    print(with_growth(create)[1])


def growth(side: str, network: str, path: Path) -> int:
    """Return what `print_growth` tells in a fresh process, where no memory that was freed before can be used again."""
    command = [sys.executable, "-m", "benchmarks.loading", "--network", network, "--grow", side, str(path)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def main() -> None:
    """Measure, print a row, and write it where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="resnext101_64x4d", help="one that timm has under the same name")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path, help="a Markdown file; its row of this network and backend is replaced")
    parser.add_argument("--grow", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    with without_compiled_operations():
        import timm
    from safetensors.torch import save_file

    name, backend = options.network, keras.backend.backend()

    def create_theirs(path: Path) -> Any:
        return timm.create_model(name, checkpoint_path=str(path))

    def create_ours(path: Path) -> Any:
        return models.create(name, weights=path)

    if options.grow:
        side, file = options.grow
        # The first network of a process brings the framework's own memory with it.
        (timm.create_model if side == "timm" else models.create)("resnet18")
        print_growth(lambda: (create_theirs if side == "timm" else create_ours)(Path(file)))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        theirs, ours = timm.create_model(name), models.create(name)
        save_file(theirs.state_dict(), path)
        rivals = {
            "create, timm": timed(lambda: create_theirs(path)),
            "create, ours": timed(lambda: create_ours(path)),
            "load, timm": timed(lambda: timm.models.load_checkpoint(theirs, str(path))),
            "load, ours": timed(lambda: load_pretrained(ours, path)),
        }
        for run in rivals.values():
            run()
        times = alternate(rivals, options.rounds)
        size = path.stat().st_size
        memory = {side: max(growth(side, name, path) for _ in range(3)) / size for side in ("timm", "ours")}
    medians = {rival: statistics.median(seconds) for rival, seconds in times.items()}
    row = {
        "network": name,
        "backend": backend,
        "file": f"{size / 1e6:.0f} MB",
        **{f"{rival}, s": f"{seconds:.2f}" for rival, seconds in medians.items()},
        "create, over timm's time": f"{1 / ratio(times, 'create, timm', 'create, ours'):.2f}",
        "load, over timm's time": f"{1 / ratio(times, 'load, timm', 'load, ours'):.1f}",
        **{f"memory, {side}, over the file": f"{share:.2f}" for side, share in memory.items()},
    }
    print("\n".join(table([row])))
    if options.output:
        packages = {"tensorflow": "tensorflow-cpu"}.get(backend, backend)
        merge_rows(options.output, environment("keras", packages, "timm", "safetensors"), [row], ("network", "backend"))


if __name__ == "__main__":
    main()
