"""PyTorch's files: the weights in any checkpoint are found, and nothing that a pickle holds is ever run."""

import argparse
import collections
import datetime
import decimal
import enum
import functools
import io
import pathlib
import pickle
import sys
import tarfile
import uuid
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch

import groupwise.backends.torch
import tests.weight_files
from groupwise.weights.reading import open_weights
from tests.weight_files import Evil, read_all, refusal, write_old_torch, write_safetensors, write_torch

pytestmark = pytest.mark.once
VALUES = {"conv1.weight": np.arange(72, dtype=np.float32).reshape(8, 1, 3, 3), "conv1.bias": np.ones(8, np.float32)}


# The file that it opens stays open.
@pytest.mark.filterwarnings("ignore:unclosed file", "ignore:Exception ignored in")
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("place", ["alone", "beside", "nested"])
def test_a_pickle_that_would_run_something_is_refused(tmp_path, zipped, place):
    marker = tmp_path / "marker"
    evil = Evil(marker)
    content = {"alone": evil, "beside": {"w": torch.ones(2), "x": evil}, "nested": {"model": [evil]}}[place]
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    assert "refused, since it holds a program or objects other than tensors (" in refusal(tmp_path / "a.pth")
    assert not marker.exists()
    torch.load(tmp_path / "a.pth", weights_only=False)
    assert marker.exists()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_bare_pickle_is_refused(tmp_path, protocol):
    (tmp_path / "a.bin").write_bytes(pickle.dumps(Evil(tmp_path / "marker"), protocol))
    refusal(tmp_path / "a.bin")
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("place", ["beside", "weight"])
def test_a_call_that_is_not_made(tmp_path, place):
    """What a file would call is never called; where weights would come of it, they are refused."""
    marker = tmp_path / "marker"
    evil = Evil(marker, tests.weight_files.touch)
    torch.save({"conv1.weight": torch.ones(2), "conv1.bias" if place == "weight" else "x": evil}, tmp_path / "a.pth")
    if place == "weight":
        said = refusal(tmp_path / "a.pth")
        assert "its 'conv1.bias' is no plain tensor but a tests.weight_files.touch; load it where" in said
    else:
        assert read_all(tmp_path / "a.pth").keys() == {"conv1.weight"}
    assert not marker.exists()
    torch.load(tmp_path / "a.pth", weights_only=False)
    assert marker.exists()


class Settings(dict[str, object]):
    """A dictionary with a state, as libraries of configurations have them."""

    frozen = False


class Hooks(list[object]):
    pass


class Mode(enum.Enum):
    TRAIN = 1


def odd_objects():
    """Return what training programs leave in checkpoints beside the weights."""
    settings = Settings(lr=0.1, inner=Settings(momentum=0.9))
    settings.frozen = True
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    return {
        "args": argparse.Namespace(lr=0.1, mode=Mode.TRAIN, output=pathlib.PurePosixPath("/runs")),
        "config": settings,
        "counts": [collections.Counter("aab"), collections.defaultdict(list, a=[1]), collections.deque([1, 2])],
        "hooks": Hooks([odd_objects, functools.partial(max, 1), dict]),
        "metric": [np.float64(71.2), np.float32(1), np.arange(3), np.dtype("float32"), np.bool_(True)],
        "random": [np.random.RandomState(0).get_state(), torch.get_rng_state(), np.random.default_rng(0)],
        "scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1),
        "optimizer": optimizer.state_dict(),
        "when": [datetime.datetime(2024, 1, 2), datetime.timedelta(3), decimal.Decimal(1), uuid.UUID(int=3)],
        "plain": [2**70, 1j, {1, 2}, frozenset([1]), b"x", bytearray(b"y"), slice(1), ..., None, torch.Size([1])],
    }


@pytest.mark.parametrize("zipped", [True, False])
def test_objects_beside_the_weights_are_passed_over(tmp_path, zipped):
    content = {**odd_objects(), "state_dict": {"weight": torch.arange(3.0)}, "hyper_parameters": odd_objects()}
    torch.save(content, tmp_path / "a.ckpt", _use_new_zipfile_serialization=zipped)
    read = read_all(tmp_path / "a.ckpt")
    assert list(read) == ["weight"]
    np.testing.assert_array_equal(read["weight"], [0, 1, 2])


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickled_module_is_refused(tmp_path, zipped):
    module = torch.nn.Conv2d(3, 4, 1)
    what = "torch.nn.modules.conv.Conv2d" if zipped else "module"
    for content in (module, {"model": module, "epoch": 3}):
        torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
        said = refusal(tmp_path / "a.pt")
        assert f"a whole {what}, which is rebuilt only by running its program; load it where it was written" in said
    torch.save({"ema": module, "model": {"weight": torch.ones(2)}}, tmp_path / "a.pt")
    assert list(read_all(tmp_path / "a.pt")) == ["weight"]


class Painted(torch.Tensor):
    """A tensor of somebody's own class."""


def test_tensors_of_somebodys_own_class_are_refused(tmp_path):
    torch.save({"weight": torch.ones(2).as_subclass(Painted)}, tmp_path / "a.pt")
    assert f"classes of somebody's own ({__name__}.Painted)" in refusal(tmp_path / "a.pt")
    torch.save({"a.weight": np.ones(2)}, tmp_path / "a.pt")
    assert "its 'a.weight' is no plain tensor but a numpy" in refusal(tmp_path / "a.pt")


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_program_is_refused(tmp_path):
    torch.jit.save(torch.jit.trace(torch.nn.ReLU(), torch.ones(1)), tmp_path / "a.pt")
    assert "refused, since it is a compiled program (TorchScript" in refusal(tmp_path / "a.pt")


def test_a_tar_file_is_refused(tmp_path):
    with tarfile.open(tmp_path / "a.pth.tar", "w") as archive:
        for name in ("storages", "tensors", "pickle"):
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    assert "refused, since it is a tar archive: unpack it" in refusal(tmp_path / "a.pth.tar")


def test_compressed_parts_are_refused(tmp_path):
    write_torch(tmp_path / "a.pth", VALUES)
    with zipfile.ZipFile(tmp_path / "a.pth") as source, zipfile.ZipFile(tmp_path / "b.pth", "w", 8) as target:
        for member in source.infolist():
            target.writestr(member.filename, source.read(member))
    assert "refused, since its parts are compressed" in refusal(tmp_path / "b.pth")


@pytest.mark.parametrize(
    ("wrap", "chosen"),
    [
        (lambda w: w(1), 1),
        (lambda w: {"state_dict": w(1), "epoch": 3, "optimizer": {"state": {0: torch.ones(1)}}}, 1),
        (lambda w: {"state_dict": w(1), "state_dict_ema": w(2)}, 2),
        (lambda w: {"model": w(1), "model_ema": w(2), "lr": torch.ones(1)}, 2),
        (lambda w: {"model": w(1), "model_ema": None, "args": {"lr": 0.1}}, 1),
        (lambda w: {"net": w(1), "ema": {"decay": torch.tensor(0.9)}, "optimizer": {"state": {}}}, 1),
        (lambda w: {"model_state_dict": w(1), "ema": {"shadow": [torch.ones(2)]}}, 1),
        (lambda w: {"weights": w(1), "ema": {"state_dict": w(2)}}, 2),
        (lambda w: {"model": {"state_dict": w(3)}}, 3),
        (lambda w: OrderedDict(w(4), model=torch.ones(1)), 4),
    ],
)
def test_nested_checkpoints(tmp_path, wrap, chosen):
    def weights(value):
        return OrderedDict(weight=torch.nn.Parameter(torch.full((2,), float(value))), text="ignored")

    torch.save(wrap(weights), tmp_path / "a.pth")
    assert read_all(tmp_path / "a.pth")["weight"].tolist() == [chosen, chosen]
    assert read_all(tmp_path / "a.pth").keys() <= {"weight", "model"}


@pytest.mark.parametrize(
    ("name", "other"),
    [("state_dict_ema", "state_dict"), ("ema", "model"), ("model_ema_state_dict", "model_state_dict")],
)
def test_averaged_weights_are_said_to_be_taken(tmp_path, name, other):
    torch.save({other: {"weight": torch.ones(2)}, name: {"weight": torch.zeros(2)}}, tmp_path / "a.pth")
    with open_weights(tmp_path / "a.pth") as file:
        assert file.note == f"the averaged weights ({name}) are taken, not those beside them ({other})"
        assert file.read("weight").tolist() == [0, 0]


def test_a_checkpoint_that_holds_itself(tmp_path):
    checkpoint = {"weight": torch.ones(2)}
    checkpoint["model"] = checkpoint
    torch.save(checkpoint, tmp_path / "a.pth")
    assert list(read_all(tmp_path / "a.pth")) == ["weight"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (lambda ones: ones, "holds no tensors by name, but one Tensor"),
        (lambda ones: [ones], "holds no tensors by name, but one list"),
        (lambda ones: {"state_dict": {"a": 1}}, "holds no tensors"),
        (lambda ones: {"state_dict": [ones]}, "holds no tensors"),
        (lambda ones: {0: ones}, "holds no tensors"),
        (lambda ones: {"a": ones.to_sparse()}, "its tensor 'a' is no dense array of real numbers"),
        (lambda ones: {"a": torch.quantize_per_tensor(ones, 0.1, 0, torch.qint8)}, "no dense array of real numbers"),
        (lambda ones: {"a": ones.to(torch.complex64)}, "no dense array of real numbers"),
        (lambda ones: {"a": ones.to("meta")}, "no dense array of real numbers"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_torch_files_of_something_else(tmp_path, content, says):
    torch.save(content(torch.ones(2)), tmp_path / "a.pth")
    assert says in refusal(tmp_path / "a.pth")


def test_transposed_and_shared_tensors(tmp_path):
    whole = torch.arange(24.0).reshape(4, 6)
    torch.save({"turned": whole.T, "part": whole[1:3], "wide": torch.ones(1).expand(5)}, tmp_path / "a.pth")
    read = read_all(tmp_path / "a.pth")
    assert read["turned"].flags.c_contiguous
    np.testing.assert_array_equal(read["turned"], np.arange(24).reshape(4, 6).T)
    np.testing.assert_array_equal(read["part"], np.arange(6, 18).reshape(2, 6))
    np.testing.assert_array_equal(read["wide"], np.ones(5))


def test_only_tensors_are_asked_for(tmp_path, monkeypatch):
    asked = []
    load = torch.load

    def listen(path, **options):
        asked.append(options)
        return load(path, **options)

    monkeypatch.setattr(torch, "load", listen)
    write_torch(tmp_path / "a.pth", VALUES)
    write_old_torch(tmp_path / "b.pth", VALUES)
    for name, zipped in (("a.pth", True), ("b.pth", False)):
        read_all(tmp_path / name)
        assert asked.pop() == {"map_location": "cpu", "weights_only": True, "mmap": zipped}


def test_without_pytorch(tmp_path, monkeypatch):
    write_torch(tmp_path / "a.pth", VALUES)
    write_safetensors(tmp_path / "a.safetensors", VALUES)
    monkeypatch.delitem(sys.modules, "groupwise.backends.torch.weight_files", raising=False)
    monkeypatch.delattr(groupwise.backends.torch, "weight_files", raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert 'pip install "groupwise[torch]", or take a .safetensors file' in refusal(tmp_path / "a.pth")
    assert read_all(tmp_path / "a.safetensors").keys() == VALUES.keys()
