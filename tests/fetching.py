"""One fetch from a hub, for a process that has not yet imported the hub's library: it reads its variables then."""

import os
from collections.abc import Mapping
from multiprocessing.connection import Connection

from groupwise.errors import UserError
from groupwise.weights.hub import fetch


def answer(connection: Connection, reference: str, environment: Mapping[str, str]) -> None:
    """Send what is fetched in that environment, or the sentence with which it is refused."""
    os.environ.clear()
    os.environ.update(environment)
    try:
        path, config = fetch(reference)
        connection.send({"path": path, "config": config})
    except UserError as error:
        connection.send({"refused": str(error)})
