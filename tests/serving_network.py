"""A small network that is served in the test's own process, and clients of it."""

import http.client
import io
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import uvicorn
from PIL import Image

from groupwise import models
from groupwise.models.network import Network
from groupwise.serving import Limits, address_of, make_app, open_listener
from groupwise.serving.guard import own_names


def small_network(name: str = "tiny") -> Network:
    """Return a network of grey images, by default the tiny one of `tests/tiny.py`, with three classes."""
    network = models.create(name, num_classes=3)
    network.metadata["class_names"] = ["across", "n01443537", "<b>down</b>"]
    assert isinstance(network, Network)
    return network


def png(seed: int = 0, size: tuple[int, int] = (8, 8)) -> bytes:
    """Return the bytes of a picture of noise, grey and of (height, width)."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, size).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def expected(network: keras.Model, seed: int = 0) -> np.ndarray:
    """Return a network's probabilities for `png(seed)` of its size, by its own pass and a softmax in float64."""
    pixels = np.random.default_rng(seed).integers(0, 256, network.input_shape[1:3]).astype(np.uint8)
    mean, std = (np.float64(network.metadata["preprocessing"][name][0]) for name in ("mean", "std"))
    image = ((pixels[None, ..., None] / 255 - mean) / std).astype("float32")
    logits = np.asarray(keras.ops.convert_to_numpy(network(image, training=False)), np.float64)[0]
    exponentials = np.exp(logits - logits.max())
    return exponentials / exponentials.sum()


@dataclass(frozen=True)
class Reply:
    """An answer: its status, its headers in small letters, and what it holds."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The answer as data."""
        assert self.headers["content-type"] == "application/json"
        return json.loads(self.body)


@dataclass
class Client:
    """One connection after the other to a server of this machine."""

    port: int

    def ask(self, path: str = "/predict", body: Any = None, method: str | None = None, **headers: str) -> Reply:
        """Return the answer to a request; `_` in a header's name stands for `-`."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            connection.request(method or ("GET" if body is None else "POST"), path, body, named)
            answer = connection.getresponse()
            found = {name.lower(): value for name, value in answer.getheaders()}
            return Reply(answer.status, found, answer.read())
        finally:
            connection.close()


@contextmanager
def served(network: Network, limits: Limits | None = None) -> Iterator[Client]:
    """Give a client of a server of a network."""
    listener = open_listener(port=0)
    app = make_app(network, limits, own_names("localhost"))
    config = uvicorn.Config(app, lifespan="on", log_config=None, access_log=False, server_header=False, ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],))
    port = int(address_of(listener).rpartition(":")[2])
    thread.start()
    try:
        yield Client(port)
    finally:
        server.should_exit = True
        thread.join()
