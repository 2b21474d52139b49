"""A training's start: its backend settled, and the processes that train together brought together."""

import os
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING

from groupwise.cli import console
from groupwise.cli.backend import settle_backend
from groupwise.errors import UserError
from groupwise.launchers import Place, find_place

if TYPE_CHECKING:
    from groupwise.training import Distribution


def place_of(coordinator: str | None, processes: int | None, process: int | None) -> Place | None:
    """Return the place that options name, else that a launcher says, else None.

    Raises:
        UserError: some of the options are given and others are not.
    """
    if coordinator is None and processes is None and process is None:
        return find_place()
    if coordinator is None or processes is None or process is None:
        says = "belong together: where process 0 listens, how many there are, and which one this is, from 0"
        raise UserError(f"--coordinator HOST:PORT, --processes N and --process I {says}")
    return Place(process, processes, coordinator)


class Start:
    """Settles the backend, when it is known, and joins the other processes.

    Args:
        stack: which leaves them.
        place: of this process; None where it is on its own.
        synchronizes: whether batch norms see the batches of all processes.
    """

    def __init__(self, stack: ExitStack, place: Place | None, synchronizes: bool) -> None:
        self._stack, self._place, self._synchronizes = stack, place, synchronizes

    @property
    def is_one_of_several(self) -> bool:
        """Whether this process trains with others."""
        return self._place is not None and self._place.count > 1

    def __call__(self, backend: str | None) -> "Distribution":
        """Return the processes that train together; it is called once.

        On PyTorch a process on its own that has several cards becomes as many processes: torchrun's.
        """
        settle_backend(backend)
        from groupwise import backends
        from groupwise.training import Distribution

        engine = backends.active.distribution
        wanted = 1 if engine is None or self._place is not None else engine.processes_wanted()
        if wanted > 1 and sys.argv[1:2] == ["train"]:  # and not a notebook, say
            launcher = ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={wanted}")
            os.execv(sys.executable, [sys.executable, *launcher, "-m", "groupwise", *sys.argv[1:]])

        distribution = self._stack.enter_context(Distribution(self._place, synchronizes=self._synchronizes))
        if distribution.index:
            console.be_silent()
        return distribution
