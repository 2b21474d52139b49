"""Processes that watch one another: threads stand for them, since how one ends does not matter to the others."""

import threading
from collections.abc import Callable
from contextlib import suppress
from queue import Queue
from typing import Any

import pytest

from groupwise.peers import Peers

pytestmark = pytest.mark.once

COUNT = 3


def gatherings(count: int) -> list[Callable[[Any], list[Any]]]:
    """Return for each of some threads a function that gives each what all have given."""
    barrier, values = threading.Barrier(count), [None] * count

    def gather(index: int, value: Any) -> list[Any]:
        values[index] = value
        barrier.wait()
        every = list(values)
        barrier.wait()
        return every

    return [lambda value, index=index: gather(index, value) for index in range(count)]  # type: ignore[misc]


def watching(said: "Queue[tuple[int, str]]") -> list[Peers]:
    """Return watches that know one another; what each says of an end, instead of ending, is put into a queue."""
    made: dict[int, Peers] = {}

    def make(index: int, gather: Any) -> None:
        made[index] = Peers(index, COUNT, gather, "127.0.0.1", lambda text: said.put((index, text)))

    threads = [threading.Thread(target=make, args=pair) for pair in enumerate(gatherings(COUNT))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [made[index] for index in range(COUNT)]


@pytest.mark.parametrize("index", range(COUNT))
def test_all_hear_why_one_ends(index: int) -> None:
    said: Queue[tuple[int, str]] = Queue()
    peers = watching(said)
    for other in peers:
        other.hint = "what then"
    peers[index].fail("its disk is full")
    heard = dict(said.get(timeout=30) for _ in range(COUNT - 1))
    assert heard.keys() == {*range(COUNT)} - {index}
    for text in heard.values():
        assert text.startswith(f"process {index} of {COUNT} (on ")
        assert text.endswith("has ended, and so do all: its disk is full; what then")


@pytest.mark.parametrize("index", range(COUNT))
def test_all_hear_that_one_is_gone(index: int) -> None:
    said: Queue[tuple[int, str]] = Queue()
    peers = watching(said)
    for key in list(peers[index]._selector.get_map().values()):
        with suppress(OSError):  # who heard of it first may have closed the next one
            key.fileobj.shutdown(2)  # type: ignore[union-attr]  # as the system does for a process that was killed
    heard = [said.get(timeout=30) for _ in range(COUNT - 1)]
    about = {text for other, text in heard if other != index}
    assert any(f"process {index} of {COUNT}" in text and "was killed" in text for text in about)


def test_all_may_leave() -> None:
    said: Queue[tuple[int, str]] = Queue()
    peers = watching(said)
    for other in peers:
        other.leave()
    assert said.empty()
