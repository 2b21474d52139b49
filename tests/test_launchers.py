"""What started a process, and which of how many it is: read from the variables that each launcher sets."""

import pytest

from groupwise.errors import UserError
from groupwise.launchers import ALONE, Place, find_place

pytestmark = pytest.mark.once

LOCAL = "127.0.0.1"
LAUNCHERS = {
    "torchrun": (
        {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
        | {"MASTER_ADDR": "node1", "MASTER_PORT": "29500"},
        Place(5, 8, "node1:29500", 1, 4, "torchrun"),
    ),
    "srun": (
        {"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8", "SLURM_LOCALID": "1", "SLURM_STEP_TASKS_PER_NODE": "4(x2)"}
        | {"SLURM_STEP_NODELIST": "gpu[07-08]", "MASTER_PORT": "1234"},
        Place(5, 8, "gpu07:1234", 1, 4, "SLURM"),
    ),
    "mpirun within an allocation of SLURM's": (
        {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}
        | {"OMPI_COMM_WORLD_LOCAL_SIZE": "2", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1", "MASTER_PORT": "1"},
        Place(1, 2, f"{LOCAL}:1", 1, 2, "Open MPI"),
    ),
    "mpiexec": (
        {"PMI_RANK": "1", "PMI_SIZE": "2", "MASTER_ADDR": "node1", "MASTER_PORT": "1234"},
        Place(1, 2, "node1:1234", 0, 1, "MPICH or Intel MPI"),
    ),
    "Kubeflow Trainer": (
        {"JAX_PROCESS_ID": "1", "JAX_NUM_PROCESSES": "2", "JAX_COORDINATOR_ADDRESS": "job-0.job:1234"},
        Place(1, 2, "job-0.job:1234", 0, 1, "JAX's variables"),
    ),
    "an indexed job of Kubernetes": (
        {"JOB_COMPLETION_INDEX": "1", "JAX_NUM_PROCESSES": "2", "JAX_COORDINATOR_ADDRESS": "job-0.job:1234"},
        Place(1, 2, "job-0.job:1234", 0, 1, "an indexed Kubernetes job"),
    ),
    "Keras": (
        {"KERAS_DISTRIBUTION_PROCESS_ID": "1", "KERAS_DISTRIBUTION_NUM_PROCESSES": "2"}
        | {"KERAS_DISTRIBUTION_JOB_ADDRESSES": "10.0.0.1:1234,10.0.0.2:2345"},
        Place(1, 2, "10.0.0.1:1234", 0, 1, "Keras's variables"),
    ),
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_each_launcher_says_which_process_this_is(launcher: str) -> None:
    variables, place = LAUNCHERS[launcher]
    assert find_place(variables) == place


def test_a_batch_script_and_a_single_process_are_on_their_own() -> None:
    assert find_place({"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_JOB_ID": "7"}) is None
    assert find_place({"RANK": "0", "WORLD_SIZE": "1"}) == ALONE
    assert find_place({"JOB_COMPLETION_INDEX": "3"}) is None


def test_the_processes_of_a_job_find_the_same_port_and_those_of_another_one_another() -> None:
    step = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": "a,b", "SLURM_STEP_ID": "0"}
    ports = [
        place.port
        for job in ("77", "78")
        for index in "01"
        if (place := find_place({**step, "SLURM_PROCID": index, "SLURM_JOB_ID": job})) is not None
    ]
    assert ports[0] == ports[1] != ports[2] == ports[3]


def test_what_is_contradictory_is_refused() -> None:
    with pytest.raises(UserError, match="process=2: of 2 processes it is one of 0 to 1"):
        Place(2, 2, f"{LOCAL}:1")
    with pytest.raises(UserError, match="coordinator=here: must be HOST:PORT, where all processes meet"):
        Place(0, 2, "here")
    with pytest.raises(UserError, match="coordinator=here:65536: must be HOST:PORT, where all processes meet"):
        Place(0, 2, "here:65536")
    with pytest.raises(UserError, match="RANK=one: the launcher's variable must be a number"):
        find_place({"RANK": "one", "WORLD_SIZE": "2", "MASTER_ADDR": LOCAL})
    with pytest.raises(UserError, match="MPICH or Intel MPI started 2 processes and does not say where they meet"):
        find_place({"PMI_RANK": "1", "PMI_SIZE": "2"})
    assert ALONE.count == 1
