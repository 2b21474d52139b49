"""Many requests at a time against a server, and the same network alone: `python -m benchmarks.serving`.

A process of its own serves a network with fresh weights, clients ask it over HTTP, each the next as soon as it has an
answer, and some of what they send is broken. Beside it stands what an image costs without the server, in this process:
the network alone, on an image prepared already, and an image decoded, prepared and looked at.
"""

import argparse
import http.client
import io
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import keras
import numpy as np
from PIL import Image, ImageFilter

from benchmarks.tables import table, write_section
from benchmarks.timing import PACKAGES, environment, timed
from groupwise import models
from groupwise.inference.outputs import predict_logits
from groupwise.inference.preprocessing import prepared_image
from groupwise.models.network import Network

BROKEN_EVERY = 10
STATUSES = {"no image": (b"this is no image", 415), "cut off": (None, 422), "nothing": (b"", 400)}
PHOTO = (375, 500)  # ImageNet's most frequent size
ALONE = 200  # calls


def photographs(count: int) -> list[bytes]:
    """Return JPEGs of smooth noise, as large as photographs of their size are."""
    found = []
    for seed in range(count):
        pixels = np.random.default_rng(seed).integers(0, 256, (PHOTO[0] // 8, PHOTO[1] // 8, 3)).astype(np.uint8)
        image = Image.fromarray(pixels).resize(PHOTO[::-1], Image.Resampling.BICUBIC)
        file = io.BytesIO()
        image.filter(ImageFilter.DETAIL).save(file, "JPEG", quality=92)
        found.append(file.getvalue())
    return found


def bodies(photos: Sequence[bytes], requests: int) -> Iterator[tuple[bytes, int]]:
    """Yield what is sent, and the status of its answer: every tenth is broken, in one of three ways."""
    kinds = list(STATUSES.values())
    for number in range(requests):
        photo = photos[number % len(photos)]
        if number % BROKEN_EVERY == BROKEN_EVERY - 1:
            content, status = kinds[number // BROKEN_EVERY % len(kinds)]
            yield photo[: len(photo) // 2] if content is None else content, status
        else:
            yield photo, 200


@contextmanager
def server(model: Path) -> Iterator[int]:
    """Give the port of `groupwise serve`."""
    command = [sys.executable, "-m", "groupwise", "serve", str(model), "--port", "0"]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        try:
            yield int(line.rpartition(" (")[0].rpartition(":")[2])
        finally:
            process.terminate()


def ask(port: int, work: Sequence[tuple[bytes, int]], clients: int) -> tuple[list[float], Counter[str], float]:
    """Return the seconds of each answer to a whole image, what became of all requests, and the seconds of all."""
    left, lock = iter(work), threading.Lock()
    latencies: list[float] = []
    outcomes: Counter[str] = Counter()

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        while True:
            with lock:
                body, status = next(left, (None, 0))
            if body is None:
                return connection.close()
            started = time.perf_counter()
            connection.request("POST", "/predict", body)
            answer = connection.getresponse()
            answer.read()
            with lock:
                outcomes["as it should be" if answer.status == status else f"{answer.status} for {status}"] += 1
                if status == 200:
                    latencies.append(time.perf_counter() - started)

    threads = [threading.Thread(target=client) for _ in range(clients)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return latencies, outcomes, time.perf_counter() - started


def look(network: Network, photo: bytes) -> None:
    """Decode a photograph, prepare it, and let a network look at it."""
    predict_logits(network, prepared_image(network, photo)[None], 1)


def row(rival: str, seconds: Sequence[float], whole: float | None = None) -> dict[str, str]:
    """Return a line of the table: the middle and the 99th percentile in milliseconds, and images a second."""
    p99 = float(np.percentile(seconds, 99))
    rate = len(seconds) / (whole or sum(seconds))
    return {
        "": rival,
        "p50, ms": f"{1e3 * statistics.median(seconds):.1f}",
        "p99, ms": f"{1e3 * p99:.1f}",
        "images a second": f"{rate:.0f}",
    }


def main() -> None:
    """Measure, print, and write where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="mobilenetv1_100")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    shape = (options.size, options.size, 3)
    network = models.create(options.network, input_shape=shape)
    network.metadata["class_names"] = [str(number) for number in range(network.output_shape[-1])]
    photos = photographs(20)
    images = [prepared_image(network, photo)[None] for photo in photos]
    for image in images[:5]:
        predict_logits(network, image, 1)
    alone = [timed(partial(predict_logits, network, images[i % 20], 1))() for i in range(ALONE)]
    both = [timed(partial(look, network, photos[i % 20]))() for i in range(ALONE)]
    batch = np.concatenate(images[:16])
    for _ in range(5):
        predict_logits(network, batch, 16)
    batched = [timed(partial(predict_logits, network, batch, 16))() / 16 for _ in range(ALONE // 8)]
    rows = [
        row("the network alone, one image", alone),
        row("the network alone, 16 at a time", batched),
        row("an image decoded and prepared, and the network, one thread", both),
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.keras")
        network.save(path)
        with server(path) as port:
            ask(port, list(bodies(photos, 100)), options.clients)
            one, _, whole = ask(port, [(photo, 200) for photo in photos * 10], 1)
            rows.append(row("served, one client", one, whole))
            work = list(bodies(photos, options.requests))
            many, outcomes, whole = ask(port, work, options.clients)
            rows.append(row(f"served, {options.clients} clients", many, whole))
    broken = sum(status != 200 for _, status in work)
    backend = keras.backend.backend()
    lines = [
        environment("keras", PACKAGES[backend], "fastapi", "uvicorn", "pillow"),
        "",
        f"{options.requests:,} requests by {options.clients} clients, {broken} of them broken: "
        + ", ".join(f"{count:,} answered {outcome}" for outcome, count in outcomes.items()),
        "",
        *table(rows),
    ]
    print("\n".join(lines))
    if options.output:
        write_section(options.output, f"{options.network}, {options.size}x{options.size}, {backend}", lines)


if __name__ == "__main__":
    main()
