"""Several processes of one command, and the port at which they meet."""

import os
import socket
import subprocess
import sys
from typing import Any, TypeAlias

Processes: TypeAlias = list["subprocess.Popen[str]"]

PATIENCE = 300
"""Seconds after which processes that wait for one another are ended."""


def free_port() -> int:
    """Return a port at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def environment(devices: int = 1, **changes: str) -> dict[str, str]:
    """Return the environment of a process that has so many devices on JAX, and one core for each."""
    path = os.pathsep.join(filter(None, sys.path))
    flags = f"--xla_force_host_platform_device_count={devices}"
    return {**os.environ, "PYTHONPATH": path, "XLA_FLAGS": flags, "OMP_NUM_THREADS": "1", **changes}


def start(commands: list[list[str]], **options: Any) -> Processes:
    """Start Python with some arguments each, its output and its errors together in a pipe."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "env": environment(), **options}
    return [subprocess.Popen([sys.executable, *command], **pipes) for command in commands]


def finished(processes: Processes) -> list[tuple[int, str]]:
    """Return the status and the output of each process, when all have ended."""
    try:
        outputs = [process.communicate(timeout=PATIENCE)[0] for process in processes]
        return [(process.returncode, output) for process, output in zip(processes, outputs, strict=True)]
    finally:
        for process in processes:
            process.kill()
