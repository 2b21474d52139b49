"""`groupwise.serving`: what is answered and what is refused, over real connections."""

import base64
import hashlib
import io
import json
import re
import socket
import struct
import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from PIL import Image

from groupwise import report
from groupwise.inference import Explainer
from groupwise.inference.outputs import predict_logits
from groupwise.models.network import Network
from groupwise.serving import Limits, batching
from groupwise.serving.batching import Batcher, Closed
from tests import tiny as bars
from tests.serving_network import Client, expected, png, served, small_network

tiny = bars.tiny
FORM = "multipart/form-data; boundary=limit"


def form(*files: bytes) -> bytes:
    """Return the body of a form of files, and of a field that is none."""
    head = b'--limit\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n'
    parts = [head % (b"image", b'; filename="../a.png"', content) for content in files]
    return b"".join([head % (b"note", b"", b"x"), *parts, b"--limit--\r\n"])


def bomb(side: int) -> bytes:
    """Return the bytes of a PNG that declares a square of so many black pixels a side, and holds none of them."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def decoded(address: str) -> np.ndarray:
    kind, _, content = address.partition(",")
    assert kind == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(content))) as image:
        return np.asarray(image)


@pytest.fixture
def network(tiny: str) -> Network:
    return small_network()


def test_answers_are_the_networks(network: Network) -> None:
    truth = expected(network, seed=4)
    order = np.argsort(-truth).tolist()
    names = network.metadata["class_names"]
    with served(network) as client:
        raw = client.ask(body=png(4), Content_Type="image/png").json
        assert list(raw) == ["top"]
        assert [guess["index"] for guess in raw["top"]] == order
        assert [guess["class"] for guess in raw["top"]] == [names[place] for place in order]
        ids = [None, "n01443537", None]
        assert [guess["wordnet_id"] for guess in raw["top"]] == [ids[place] for place in order]
        np.testing.assert_allclose([guess["probability"] for guess in raw["top"]], truth[order], atol=1e-5)
        assert client.ask(body=form(png(4)), Content_Type=FORM).json == raw
        # What curl sends where it is told nothing.
        assert client.ask(body=png(4), Content_Type="application/x-www-form-urlencoded").json == raw
        assert client.ask("/predict?top=1", body=png(4)).json == {"top": raw["top"][:1]}

        image = np.random.default_rng(4).integers(0, 256, (8, 8, 1)).astype(np.uint8)
        mean, std = (np.float32(network.metadata["preprocessing"][name][0]) for name in ("mean", "std"))
        prepared = ((image[None] / np.float32(255) - mean) / std).astype(np.float32)
        for query, place in (("", order[0]), ("&class=n01443537", 1), ("&class=2", 2)):
            answer = client.ask(f"/predict?heat_map=true{query}", body=png(4)).json
            assert [guess["index"] for guess in answer["top"]] == order
            heat = Explainer(network).explain(prepared, [place])[1][0]
            picture = report.overlay(np.repeat(image, 3, axis=-1), heat, (0, 0, 8, 8))
            assert picture.shape == (384, 384, 3)
            np.testing.assert_allclose(decoded(answer["heat_map"]), picture * 255, atol=1.5)
        about = client.ask("/classes").json
        assert [row["class"] for row in about["classes"]] == names
        assert (about["network"], about["image_size"], about["heat_maps"]) == ("tiny", [8, 8], True)
        assert client.ask("/health").json == {"status": "ok", "requests": 0}


REFUSED: list[tuple[str, int, str, dict[str, Any]]] = [
    ("/predict", 400, "there is no image: send one as the request's body, or as a file of a form", {"body": b""}),
    ("/predict", 400, "there is no image", {"body": form(), "Content_Type": FORM}),
    ("/predict", 400, "there is no image", {"body": form(b""), "Content_Type": FORM}),
    ("/predict", 400, "Missing boundary", {"body": form(png()), "Content_Type": "multipart/form-data"}),
    ("/predict", 400, "", {"body": b"--other\r\nnothing", "Content_Type": FORM}),
    ("/nowhere", 404, "there is nothing here: see /, /predict, /classes and /health", {}),
    ("/docs", 404, "there is nothing here", {}),
    ("/predict", 405, "this path takes POST", {}),
    ("/classes", 405, "this path takes GET", {"method": "DELETE"}),
    ("/predict", 413, "the request is too large: it may hold 100,000 bytes", {"body": bytes(100_001)}),
    ("/predict", 413, "the request is too large", {"body": iter([bytes(60_000)] * 2)}),
    ("/predict", 413, "the request is too large", {"body": form(bytes(100_001)), "Content_Type": FORM}),
    ("/predict", 413, "the image cannot be read: too large: 10000 x 10000 pixels", {"body": bomb(10_000)}),
    ("/predict", 413, "the image cannot be read: too large: 60000 x 60000 pixels", {"body": bomb(60_000)}),
    ("/predict", 415, "the image cannot be read: not an image of a known format", {"body": b"no image at all"}),
    ("/predict", 415, "not an image of a known format", {"body": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n"}),
    ("/predict", 415, "a HEIC photo, which is not read", {"body": b"\0\0\0\x18ftypheic" + bytes(99)}),
    ("/predict", 422, "the image cannot be read: ", {"body": png(size=(90, 90))[:2000]}),
    ("/predict?top=0", 422, "top=0: input should be greater than or equal to 1", {"body": png()}),
    ("/predict?top=x", 422, "top=x: ", {"body": png()}),
    ("/predict?heat_map=2", 422, "heat_map=2: ", {"body": png()}),
    ("/predict?class=1", 422, "class=1: is of the heat map; add heat_map=true", {"body": png()}),
    ("/predict?heat_map=1&class=acros", 422, "class=acros: there is no such class; did you mean", {"body": png()}),
    ("/predict", 422, "the form holds 2 files: send one", {"body": form(png(), png()), "Content_Type": FORM}),
]


@pytest.mark.once
def test_what_is_refused_is_said_in_a_sentence(network: Network, caplog: Any) -> None:
    with served(network, Limits(most_bytes=100_000)) as client:
        for path, status, sentence, request in REFUSED:
            reply = client.ask(path, **request)
            assert reply.status == status, (path, sentence, reply)
            assert list(reply.json) == ["error"]
            assert sentence in reply.json["error"], reply.json
            assert not re.search(r"Traceback|0x[0-9a-f]{6}|\.py|/work|/tmp|/home", reply.body.decode())
            assert reply.headers["x-content-type-options"] == "nosniff"
            assert status != 405 or reply.headers["allow"] in ("POST", "GET")
        assert client.ask(body=png()).status == 200
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


@pytest.mark.once
def test_who_asks_before_sending_sends_nothing_that_is_too_large(network: Network) -> None:
    head = "POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\nExpect: 100-continue\r\n\r\n"
    with served(network, Limits(most_bytes=100_000)) as client:
        for length, answer in ((10**12, b"HTTP/1.1 413 "), (len(png()), b"HTTP/1.1 100 ")):
            with socket.create_connection(("127.0.0.1", client.port), timeout=30) as asking:
                asking.sendall(head.format(length).encode())
                assert asking.makefile("rb").read1().startswith(answer)


@pytest.mark.once
def test_other_pages_cannot_ask(network: Network) -> None:
    with served(network) as client:
        own = f"127.0.0.1:{client.port}"
        for host in (own, "localhost", "LOCALHOST:99", "[::1]:80", "192.168.0.7:8000"):
            assert client.ask("/health", Host=host).status == 200
        for host in ("evil.example", f"evil.example:{client.port}", "127.0.0.1.evil.example", "", "[::1", "localhost."):
            reply = client.ask(body=png(), Host=host)
            assert (reply.status, "Host" in reply.json["error"]) == (403, True)
        assert client.ask(body=png(), Origin=f"http://{own}").status == 200
        for origin in ("http://evil.example", "null", "http://127.0.0.1:1", f"http://{own}.evil.example", "http://[1"):
            reply = client.ask(body=png(), Origin=origin)
            assert (reply.status, "Origin" in reply.json["error"]) == (403, True)
            assert not any("access-control" in name for name in reply.headers)


@pytest.mark.once
def test_the_page_may_do_what_it_does_and_no_more(network: Network) -> None:
    with served(network) as client:
        page = client.ask("/")
    text = page.body.decode()
    policy = dict(part.split(" ", 1) for part in page.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["frame-ancestors"] == "'none'"
    for tag in ("script", "style"):
        (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert policy[f"{tag}-src"] == f"'sha256-{digest}'"
    assert not re.search(r"https?://|style=|onclick=", text)
    assert "3 classes, images of 8 × 8 pixels" in text


@pytest.fixture
def slow() -> Iterator[threading.Event]:
    """An event for which `waiting` lets a network wait before it answers."""
    goes = threading.Event()
    yield goes
    goes.set()


def waiting(goes: threading.Event, sizes: list[tuple[int, int]]) -> Any:
    """Return what stands for `predict_logits`: it notes how many images it is given, and of how many, and waits."""

    def predict(model: Any, images: Any, batch_size: int) -> Any:
        sizes.append((len(images), batch_size))
        assert goes.wait(60)
        return predict_logits(model, images, batch_size)

    return predict


def wait_for_requests(client: Client, count: int) -> None:
    end = time.monotonic() + 30
    while client.ask("/health").json["requests"] != count:
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.once
def test_beyond_so_many_requests_others_come_again(network: Network, slow: Any, monkeypatch: Any) -> None:
    with served(network, Limits(most_requests=2)) as client, ThreadPoolExecutor() as pool:
        monkeypatch.setattr(batching, "predict_logits", waiting(slow, []))
        first = [pool.submit(client.ask, body=png(seed)) for seed in range(2)]
        wait_for_requests(client, 2)
        reply = client.ask(body=png(9))
        assert (reply.status, reply.headers["retry-after"]) == (503, "1")
        assert reply.json == {"error": "2 requests are being answered: come again later"}
        slow.set()
        assert [done.result().status for done in first] == [200, 200]
        assert client.ask(body=png(9)).status == 200


@pytest.mark.once
def test_a_request_has_so_much_time(network: Network, slow: Any, monkeypatch: Any) -> None:
    with served(network, Limits(seconds=0.4)) as client:
        head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900\r\n\r\n"
        with socket.create_connection(("127.0.0.1", client.port)) as dripping:
            dripping.sendall(head + png()[:20])
            answer = dripping.makefile("rb").read1()
        assert answer.startswith(b"HTTP/1.1 408 ")
        with socket.create_connection(("127.0.0.1", client.port)) as leaving:
            leaving.sendall(head + png()[:20])
        monkeypatch.setattr(batching, "predict_logits", waiting(slow, []))
        reply = client.ask(body=png())
        assert (reply.status, reply.json) == (504, {"error": "the image was not answered within 0.4 seconds"})
        wait_for_requests(client, 0)
        slow.set()
        assert client.ask(body=png()).status == 200


@pytest.mark.once
def test_what_waits_is_run_together(network: Network, slow: Any, monkeypatch: Any) -> None:
    sizes: list[tuple[int, int]] = []
    slow.set()
    monkeypatch.setattr(batching, "predict_logits", waiting(slow, sizes))
    batcher = Batcher(network, window=0.1)
    assert {size for size, _ in sizes} == {1, 2, 4, 8, 16}
    slow.clear()
    sizes.clear()
    images = np.random.default_rng(0).normal(size=(30, 8, 8, 1)).astype(np.float32)
    answers = [batcher.submit(image) for image in images]
    while not sizes:
        time.sleep(0.01)
    assert answers[20].cancel()
    assert not answers[0].cancel()
    slow.set()
    found = np.stack([done.result().probabilities for done in answers if not done.cancelled()])
    assert sizes == [(16, 16), (8, 8), (4, 4), (1, 1)]
    logits = np.asarray(network.predict_on_batch(np.delete(images, 20, axis=0)), np.float64)
    truth = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found, truth, atol=1e-5)
    batcher.close()
    with pytest.raises(Closed):
        batcher.submit(images[0])


@pytest.mark.once
def test_a_batch_that_fails_ends_its_own_requests_alone(network: Network, monkeypatch: Any, caplog: Any) -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError("/secret/path")

    with served(network) as client:
        monkeypatch.setattr(batching, "predict_logits", fail)
        reply = client.ask(body=png())
        assert (reply.status, reply.json["error"]) == (500, "the network could not answer; the server's log says why")
        monkeypatch.undo()
        assert client.ask(body=png()).status == 200
    (record,) = caplog.records
    assert record.name == "groupwise.serving"
    assert "/secret/path" in record.exc_text


@pytest.mark.once
def test_a_network_that_fails_at_once_is_not_served(network: Network, monkeypatch: Any, caplog: Any) -> None:
    def fail(*_: Any) -> Any:
        raise MemoryError("too large")

    monkeypatch.setattr(batching, "predict_logits", fail)
    before = set(threading.enumerate())
    with pytest.raises(MemoryError, match="too large"):
        Batcher(network)
    assert not caplog.records
    assert set(threading.enumerate()) <= before


@pytest.mark.once
def test_a_network_that_cannot_say_where_it_looked_still_answers(network: Network, monkeypatch: Any) -> None:
    monkeypatch.setattr(network.get_layer("head"), "name", "other")
    with served(network) as client:
        assert client.ask(body=png()).status == 200
        reply = client.ask("/predict?heat_map=true", body=png())
        assert (reply.status, "where it looked cannot be said" in reply.json["error"]) == (422, True)
        assert client.ask("/classes").json["heat_maps"] is False
        assert 'data-explains="false"' in client.ask("/").body.decode()


@pytest.mark.once
def test_of_many_requests_at_a_time_none_is_lost(network: Network) -> None:
    requests = 200
    truths = [expected(network, seed) for seed in range(10)]

    def one(number: int) -> int:
        if number % 10 == 7:
            broken = (b"", b"text", png(size=(90, 90))[:3000], bytes(200_000))[number // 10 % 4]
            reply = client.ask(body=broken)
            assert list(reply.json) == ["error"]
            return reply.status
        seed = number % 10
        reply = client.ask(body=png(seed))
        guesses = {guess["index"]: guess["probability"] for guess in json.loads(reply.body)["top"]}
        np.testing.assert_allclose([guesses[place] for place in range(3)], truths[seed], atol=1e-5)
        return reply.status

    with served(network, Limits(most_bytes=100_000)) as client, ThreadPoolExecutor(8) as pool:
        statuses = Counter(pool.map(one, range(requests)))
        assert client.ask("/health").json == {"status": "ok", "requests": 0}
    assert statuses == {200: 180, 400: 5, 415: 5, 422: 5, 413: 5}


@pytest.mark.once
@pytest.mark.parametrize("name", ["most_bytes", "most_requests", "seconds"])
def test_limits_are_positive(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}=0: must be positive"):
        Limits(**{name: 0})
