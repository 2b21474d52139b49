"""Weights from the Hugging Face hub: one on localhost is asked as the real one would be, by processes of their own.

`huggingface_hub` reads its variables when it is imported.
"""

import hashlib
import json
import multiprocessing
import os

import numpy as np
import pytest
import torch
from safetensors.numpy import save

from groupwise.errors import UserError
from groupwise.weights import hub as weights_hub
from groupwise.weights.reading import open_weights
from tests import fetching
from tests.fake_hub import Repository, serve

pytestmark = pytest.mark.once
NAME = "timm/resnext_toy.a1_in1k"
MODEL = save({"conv1.weight": np.arange(100_000, dtype=np.float32)})
CONFIG = {"architecture": "resnext_toy", "num_classes": 5}
FILES = {"config.json": json.dumps(CONFIG).encode(), "model.safetensors": MODEL}
PINNED = "0123456789" * 4
# A process with the frameworks imported, of which those that fetch are forked: importing them each time took 4 to 9 s.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload([fetching.__name__])


@pytest.fixture
def hub():
    with serve() as hub:
        hub.repositories[NAME] = Repository(dict(FILES))
        yield hub


class Client:
    """Fetches from a hub, each time in a new process, with a cache of its own."""

    def __init__(self, hub, home):
        self.hub = hub
        self.home = home

    def start(self, reference, **variables):
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("HF_", "HUGGING")) and not name.lower().endswith("_proxy")
        }
        own = {"HF_ENDPOINT": self.hub.url, "HF_HOME": str(self.home), "HF_HUB_DISABLE_TELEMETRY": "1"}
        receiver, sender = PROCESSES.Pipe(duplex=False)
        process = PROCESSES.Process(target=fetching.answer, args=(sender, reference, kept | own | variables))
        process.start()
        sender.close()
        return process, receiver

    def ask(self, reference, **variables):
        process, receiver = self.start(reference, **variables)
        answer = receiver.recv()
        process.join()
        return answer

    def fetch(self, reference=NAME, **variables):
        answer = self.ask(reference, **variables)
        assert "refused" not in answer, answer
        return answer["path"], answer["config"]

    def refusal(self, reference=NAME, **variables):
        """Return the sentence with which a fetch is refused; it names the repository, on one line."""
        sentence = self.ask(reference, **variables)["refused"]
        assert sentence.startswith(f"hf:{reference.split('@')[0]}")
        assert "\n" not in sentence
        return sentence

    def files(self, name="model.safetensors"):
        """Return the paths in the cache that lead to a file, or that hold what could be a part of it."""
        cache = self.home / "hub" / f"models--{NAME.replace('/', '--')}"
        large = [path for path in cache.rglob("*") if path.is_file() and path.stat().st_size > 1000]
        return sorted({*cache.rglob(name), *large})


@pytest.fixture
def client(hub, tmp_path):
    return Client(hub, tmp_path / "home")


def test_the_first_fetch_downloads_and_the_second_does_not(hub, client):
    path, config = client.fetch()
    assert (path.name, path.read_bytes(), config) == ("model.safetensors", MODEL, CONFIG)
    with open_weights(path) as file:
        assert file.shapes == {"conv1.weight": (100_000,)}
    assert hub.asked("GET") == ["config.json", "model.safetensors"]
    assert client.fetch() == (path, config)
    assert hub.asked("GET") == []


def test_offline(hub, client):
    says = "config.json is not in the cache, and HF_HUB_OFFLINE keeps the hub away"
    assert says in client.refusal(HF_HUB_OFFLINE="1")
    fetched = client.fetch()
    hub.requests.clear()
    assert client.fetch(HF_HUB_OFFLINE="1") == fetched
    assert "config.json is not in the cache" in client.refusal(f"{NAME}@v2", HF_HUB_OFFLINE="1")
    assert not hub.requests


def test_files_that_a_repository_lacks_are_remembered_offline(hub, client):
    hub.repositories[NAME].files = {"pytorch_model.bin": MODEL}
    path, config = client.fetch()
    assert (path.name, config) == ("pytorch_model.bin", {})
    assert client.fetch(HF_HUB_OFFLINE="1") == (path, config)


def test_a_pytorch_file_where_there_is_no_other(hub, client, tmp_path):
    torch.save({"conv1.weight": torch.ones(4, 4)}, tmp_path / "model.bin")
    hub.repositories[NAME].files = {"config.json": b"{}", "pytorch_model.bin": (tmp_path / "model.bin").read_bytes()}
    path, _ = client.fetch()
    with open_weights(path) as file:
        assert file.shapes == {"conv1.weight": (4, 4)}
    assert hub.asked("GET") == ["config.json", "pytorch_model.bin"]


def test_no_file_of_weights(hub, client):
    hub.repositories[NAME].files = {"config.json": b"{}", "model.onnx": b""}
    assert client.refusal().endswith("holds neither model.safetensors nor pytorch_model.bin, of which one is needed")


@pytest.mark.parametrize("revision", ["v1", PINNED, "refs/pr/1"])
def test_a_revision_is_asked_for(hub, client, revision):
    hub.repositories[NAME].revisions = {revision.replace("/", "%2F"): PINNED}
    path, _ = client.fetch(f"{NAME}@{revision}")
    assert {request.revision for request in hub.requests} == {revision.replace("/", "%2F")}
    assert path.parent.name == PINNED
    assert "has no revision 'v9'" in client.refusal(f"{NAME}@v9")


def test_a_token_is_sent(hub, client):
    hub.repositories[NAME].token = "hf_secret"
    assert "does not exist on the hub, or is private" in client.refusal()
    client.fetch(HF_TOKEN="hf_secret")
    assert {request.token for request in hub.requests[1:]} == {"hf_secret"}


def test_a_gated_repository(hub, client):
    hub.repositories[NAME].token = "hf_secret"
    hub.repositories[NAME].gated = True
    assert "is open to those who accepted its terms; accept them on its page" in client.refusal()
    client.fetch(HF_TOKEN="hf_secret")


def test_no_such_repository(client):
    assert "does not exist on the hub, or is private; check the name" in client.refusal("timm/nothing")


def test_a_hub_that_answers_with_errors(hub, client):
    hub.status = 401
    assert "the hub answered 401; check the token: hf auth login, or HF_TOKEN" in client.refusal(HF_TOKEN="hf_old")
    hub.status = 403
    assert "config.json could not be had, since the hub answered 403; try again later" in client.refusal()
    hub.status = None
    fetched = client.fetch()
    hub.status = 503
    assert client.fetch() == fetched


def test_a_download_that_breaks_off(hub, client):
    hub.breaks_after = 200_000
    assert "model.safetensors could not be " in client.refusal()
    assert client.files() == []
    hub.breaks_after = None
    path, _ = client.fetch()
    assert path.read_bytes() == MODEL


def test_a_killed_download(hub, client):
    hub.breaks_after, hub.hangs = 200_000, True
    process, _ = client.start(NAME)
    assert hub.hanging.wait(60)
    process.kill()
    process.join()
    assert not [path for path in client.files() if not path.name.endswith(".incomplete")]
    assert "is not in the cache" in client.refusal(HF_HUB_OFFLINE="1")
    hub.breaks_after = None
    path, _ = client.fetch()
    assert path.read_bytes() == MODEL


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_other_bytes_than_the_hubs_sha256_are_refused(hub, client, name):
    wrong = MODEL[:-1] + b"?"
    hub.repositories[NAME].files = {name: MODEL}
    hub.replaced[name] = wrong
    says = f"{name} is damaged: its SHA-256 is {hashlib.sha256(wrong).hexdigest()}, and the hub's is "
    assert says + hashlib.sha256(MODEL).hexdigest() in client.refusal()
    assert client.files(name) == []
    assert "is not in the cache" in client.refusal(HF_HUB_OFFLINE="1")
    hub.replaced.clear()
    path, _ = client.fetch()
    assert path.read_bytes() == MODEL


def test_a_file_that_is_damaged_in_the_cache_is_found_and_fetched_again(hub, client):
    path, _ = client.fetch()
    path.resolve().write_bytes(MODEL[:-1] + b"?")
    assert "is damaged" in client.refusal(HF_HUB_OFFLINE="1")
    assert client.files() == []
    path, _ = client.fetch()
    assert path.read_bytes() == MODEL


def test_a_blob_that_the_cache_shares_under_another_name(client):
    """As `huggingface_hub` keeps files of its newer storage."""
    path, _ = client.fetch()
    blob, shared = path.resolve(), client.home / "hub" / "blobs" / "ab" / ("ab" * 32)
    shared.parent.mkdir(parents=True)
    blob.rename(shared)
    blob.symlink_to(shared)
    assert client.fetch()[0] == path
    shared.write_bytes(MODEL[:-1] + b"?")
    assert "is damaged" in client.refusal()
    assert not any(place.is_symlink() or place.exists() for place in (path, blob, shared))


def test_a_file_is_hashed_once_and_again_when_it_changed(client):
    path, _ = client.fetch()
    blob = path.resolve()
    status = blob.stat()
    blob.write_bytes(MODEL[:-1] + b"?")
    os.utime(blob, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert client.fetch()[0] == path  # of the same size and time: nobody looked inside
    os.utime(blob)
    assert "is damaged" in client.refusal()
    assert client.files() == list(blob.parent.glob("*.verified")) == []
    assert client.fetch()[0].read_bytes() == MODEL


def test_a_cache_where_nothing_can_be_noted(client):
    path, _ = client.fetch()
    (note,) = path.resolve().parent.glob("*.verified")
    note.unlink()
    note.mkdir()
    assert client.fetch()[0].read_bytes() == MODEL


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"{", "its config.json is damaged (Expecting property name"),
        (b"\xff\xfe\xfd", "its config.json is damaged ("),
        (b"[1]", "its config.json is damaged (a list instead of names and values)"),
    ],
)
def test_a_damaged_config(hub, client, content, says):
    hub.repositories[NAME].files["config.json"] = content
    assert says in client.refusal()
    hub.repositories[NAME].files["config.json"] = FILES["config.json"]
    assert client.fetch()[1] == CONFIG


@pytest.mark.parametrize(
    "reference",
    ["", "resnet50", "timm/", "/resnet50", "timm/a/b", "timm/a@", "timm/a@../..", "timm/a b", "../a@b"],
)
def test_what_is_no_reference(reference):
    with pytest.raises(UserError, match="is no repository; write hf:owner/name or hf:owner/name@revision"):
        weights_hub.fetch(reference)


def test_a_name_that_the_hub_does_not_allow(client):
    assert "is no name of a repository (" in client.refusal("timm/-resnet50-")


def test_a_hub_that_cannot_be_reached(monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def fail(*arguments, **options):
        raise LocalEntryNotFoundError("Please check your connection.") from ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    says = r"hf:no/body: config\.json is not in the cache, and the hub cannot be reached; check the connection"
    with pytest.raises(UserError, match=says):
        weights_hub.fetch("no/body")


def test_a_full_disk(monkeypatch):
    import huggingface_hub

    def fail(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(UserError, match=r"config\.json could not be downloaded \(.*No space left on device\)"):
        weights_hub.fetch("no/body")
