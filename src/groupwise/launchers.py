"""Which of how many processes this one is, as what started it says: torchrun, SLURM, MPI, Kubernetes, or a user."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from zlib import crc32

from groupwise.errors import UserError, argument

_FIRST_PORT, _PORTS = 12000, 8000
_LAST_PORT = 2**16 - 1


@dataclass(frozen=True)
class Place:
    """A process's place among those that compute together.

    Attributes:
        index: of the process, from 0. count: of processes.
        coordinator: "HOST:PORT" of where they meet; process 0 runs on that host.
        local_index: of the process on its machine, from 0. local_count: of processes there, as far as that is known.
        launcher: what started it, as a name for users.

    Raises:
        UserError: the index is not one of count, or the coordinator is no address.
    """

    index: int
    count: int
    coordinator: str
    local_index: int = 0
    local_count: int = 1
    launcher: str = "hand"

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UserError(f"{argument('processes', self.count)}: there is one process at least")
        if not 0 <= self.index < self.count:
            raise UserError(
                f"{argument('process', self.index)}: of {self.count} processes it is one of 0 to {self.count - 1}"
            )
        if re.fullmatch(r".+:\d{1,5}", self.coordinator) is None or self.port > _LAST_PORT:
            says = f"must be HOST:PORT, where all processes meet: process 0's host, and a port of up to {_LAST_PORT}"
            raise UserError(f"{argument('coordinator', self.coordinator)}: {says}")

    @property
    def host(self) -> str:
        """Of process 0."""
        return self.coordinator.rpartition(":")[0]

    @property
    def port(self) -> int:
        """Of the coordinator."""
        return int(self.coordinator.rpartition(":")[2])


ALONE = Place(0, 1, "127.0.0.1:0")
"""That of a process on its own."""


@dataclass(frozen=True)
class _Launcher:
    """The variables in which a launcher says where a process stands; "" for what it does not say."""

    name: str
    index: str
    count: str
    local_index: str = ""
    local_count: str = ""
    job: tuple[str, ...] = ()
    """Which name the job: of what the port is made where none is named."""


# mpirun starts its processes by SLURM's means where it can: they find SLURM's variables too, which are its helper's.
_LAUNCHERS = (
    _Launcher("JAX's variables", "JAX_PROCESS_ID", "JAX_NUM_PROCESSES"),
    _Launcher("an indexed Kubernetes job", "JOB_COMPLETION_INDEX", "JAX_NUM_PROCESSES"),
    _Launcher("Keras's variables", "KERAS_DISTRIBUTION_PROCESS_ID", "KERAS_DISTRIBUTION_NUM_PROCESSES"),
    _Launcher("torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    _Launcher(
        "Open MPI",
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
        ("PMIX_NAMESPACE",),
    ),
    _Launcher("MPICH or Intel MPI", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    _Launcher(
        "SLURM",
        "SLURM_PROCID",
        "SLURM_STEP_NUM_TASKS",
        "SLURM_LOCALID",
        "SLURM_STEP_TASKS_PER_NODE",
        ("SLURM_JOB_ID", "SLURM_STEP_ID"),
    ),
)


def find_place(environment: Mapping[str, str] = os.environ) -> Place | None:
    """Return the place that a launcher's variables say; None where nothing says that there is one.

    Of SLURM's variables only those of a step count, which `srun` sets: a batch script runs once.

    Raises:
        UserError: the variables contradict each other, or do not say where the processes meet.

    Examples:
        >>> find_place({"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"})
        Place(index=1, count=2, coordinator='10.0.0.1:29500', local_index=0, local_count=1, launcher='torchrun')
        >>> find_place({})
    """
    for launcher in _LAUNCHERS:
        if launcher.index in environment and launcher.count in environment:
            count = _number(environment, launcher.count)
            if count == 1:
                return ALONE
            return Place(
                _number(environment, launcher.index),
                count,
                _coordinator(environment, launcher, count),
                _number(environment, launcher.local_index),
                _number(environment, launcher.local_count, 1),
                launcher.name,
            )
    return None


def _number(environment: Mapping[str, str], name: str, default: int = 0) -> int:
    text = environment.get(name) or str(default)
    # SLURM writes how many tasks each node has as "4(x2),3".
    found = re.match(r"\d+(?=$|[(,])", text)
    if found is None:
        raise UserError(f"{name}={text}: the launcher's variable must be a number")
    return int(found[0])


def _coordinator(environment: Mapping[str, str], launcher: _Launcher, count: int) -> str:
    """Return "HOST:PORT" of where a launcher's processes meet."""
    addresses = environment.get("KERAS_DISTRIBUTION_JOB_ADDRESSES", "").partition(",")[0]
    named = environment.get("JAX_COORDINATOR_ADDRESS") or addresses
    if named:
        return named if ":" in named else f"{named}:{_port(environment, launcher)}"
    host = environment.get("MASTER_ADDR") or _first_host(environment.get("SLURM_STEP_NODELIST", ""))
    if not host and _number(environment, launcher.local_count) == count:
        host = "127.0.0.1"
    if not host:
        raise UserError(
            f"{launcher.name} started {count} processes and does not say where they meet: for all of them, set "
            f"MASTER_ADDR to the name of process 0's machine, or JAX_COORDINATOR_ADDRESS to HOST:PORT"
        )
    return f"{host}:{_port(environment, launcher)}"


def _port(environment: Mapping[str, str], launcher: _Launcher) -> int:
    """Return the port that is named, else one that the job's other processes find, too, and other jobs seldom."""
    if environment.get("MASTER_PORT"):
        return _number(environment, "MASTER_PORT")
    job = ".".join(environment[name] for name in launcher.job if name in environment) or str(os.getppid())
    return _FIRST_PORT + crc32(job.encode()) % _PORTS


def _first_host(nodes: str) -> str:
    """Return the first of SLURM's names of nodes.

    Examples:
        >>> _first_host("gpu[07-09,12],cpu3"), _first_host("login1,login2"), _first_host("rack[1-2]n5")
        ('gpu07', 'login1', 'rack1n5')
    """
    found = re.match(r"([^,\[]*)(?:\[(\w+)[^\]]*\])?([^,\[]*)", nodes)
    assert found is not None
    return "".join(part or "" for part in found.groups())
