"""How fast photographs become batches of a training, against a DataLoader of PyTorch, and what a million images cost.

`KERAS_BACKEND=torch python -m benchmarks.reading PHOTOS --output benchmarks/results/reading.md`. PHOTOS is a folder, or
a zip, of class folders. Each rival decodes, crops (8 to 100% of the area, to 224 x 224), mirrors and normalises. They
take turns in one run, of ten batches of 32 each; batches that were made ahead are taken before. The DataLoader has two
worker processes and torchvision's RandomResizedCrop, and reads the same file. Memory is what the rounds add to what is
resident. Many images are those of a split that makes them up.
"""

import argparse
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers import without_compiled_operations
from benchmarks.tables import table
from benchmarks.timing import alternate, environment, ratio
from groupwise.data import Augmentation, Decoding, ImageBatches, Preprocessing, Split, Variation, load_dataset

SIZE, BATCH, BATCHES = 224, 32, 10
AREA = (0.08, 1.0)
MANY = 1_281_167  # ImageNet's training images


def resident() -> int:
    """Return the process's resident memory in bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def photographs(path: Path) -> Split:
    """Return the images at a path, repeated so that a turn never lacks any."""
    split = load_dataset(path, test_fraction=1.0).test
    return split.take(np.resize(np.arange(len(split)), 100 * BATCH * BATCHES))


def ours(split: Split, threads: int) -> Iterator[Any]:
    """Yield batches of a training for ever."""
    variation = Variation(Augmentation(flip=True, resized_crop=AREA), shuffle=True)
    decoding = Decoding(cache=False, workers=threads)
    batches = ImageBatches(
        split, BATCH, (SIZE, SIZE, 3), int(split.labels.max()) + 1, Preprocessing(), variation, decoding
    )
    while True:
        yield from (batches.batch(index) for index in range(len(batches)))
        batches.on_epoch_end()


class _Photographs:
    """The same images as torch's DataLoader wants them."""

    def __init__(self, path: Path, transform: Callable[[Any], Any]) -> None:
        self._path, self._transform = path, transform
        self._split: Split | None = None

    def __len__(self) -> int:
        return 100 * BATCH * BATCHES

    def __getitem__(self, index: int) -> tuple[Any, int]:
        from PIL import Image

        self._split = self._split or photographs(self._path)
        return self._transform(Image.fromarray(self._split.read(index))), int(self._split.labels[index])


def theirs(path: Path) -> Iterator[Any]:
    """Yield batches of a DataLoader with two workers for ever."""
    with without_compiled_operations():
        from torchvision import transforms
    from torch.utils.data import DataLoader

    steps = [transforms.RandomResizedCrop(SIZE, AREA), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    normalize = transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    images = _Photographs(path, transforms.Compose([*steps, normalize]))
    while True:
        yield from DataLoader(images, BATCH, shuffle=True, num_workers=2)  # type: ignore[arg-type]


def turn(batches: Iterator[Any]) -> float:
    """Return the seconds of as many batches as a turn has; those that were made ahead are taken before."""
    for _ in range(8):
        next(batches)
    started = time.perf_counter()
    for _ in range(BATCHES):
        next(batches)
    return time.perf_counter() - started


def many() -> dict[str, str]:
    """Return what a training on as many images as ImageNet's costs beside its images."""
    image = np.zeros((8, 8, 3), np.uint8)
    split = Split(np.arange(MANY) % 1000, range(MANY), lambda index, side: image)  # type: ignore[arg-type]
    before, started = resident(), time.perf_counter()
    variation = Variation(Augmentation(flip=True), shuffle=True)
    batches = ImageBatches(split, 256, (8, 8, 3), 1000, Preprocessing(), variation, Decoding(cache=False))
    batches.batch(0)
    first, grown = time.perf_counter() - started, resident() - before
    for index in range(1, 10):
        batches.batch(index)
    started = time.perf_counter()
    for index in range(10, 60):
        batches.batch(index)
    each = (time.perf_counter() - started) / 50
    batches.close()
    return {
        "images": f"{MANY:,}",
        "until the first batch, s": f"{first:.2f}",
        "memory, MB": f"{grown / 1e6:.0f}",
        "a batch of 256, order and images of 8x8, ms": f"{1e3 * each:.1f}",
    }


def main() -> None:
    """Measure, print, and write where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", type=Path)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    split = photographs(options.photos)
    rivals = {
        "DataLoader, two workers": theirs(options.photos),
        "ours, one thread": ours(split, 1),
        "ours, two threads": ours(split, 2),
    }
    before = {}
    for name, batches in rivals.items():
        turn(batches)
        before[name] = resident()
    times = alternate({name: partial(turn, batches) for name, batches in rivals.items()}, options.rounds)
    rows = [
        {
            "rival": name,
            "images a second": f"{BATCH * BATCHES / statistics.median(seconds):.0f}",
            "over the DataLoader": f"{ratio(times, 'DataLoader, two workers', name):.2f}",
            "over one thread": f"{ratio(times, 'ours, one thread', name):.2f}",
        }
        for name, seconds in times.items()
    ]
    growth = max(0, resident() - before["ours, two threads"]) / 1e6
    lines = [
        environment("keras", "pillow", "simplejpeg", "torch", "torchvision"),
        "",
        *table(rows),
        "",
        f"{options.rounds} rounds added {growth:.0f} MB to the resident memory of all of ours.",
        "",
        *table([many()]),
    ]
    print("\n".join(lines))
    if options.output:
        options.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
