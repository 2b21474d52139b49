"""`groupwise serve`: a trained network as a page to drop images on, and for programs."""

import ipaddress
import socket
from contextlib import closing
from typing import Annotated

import typer

from groupwise.cli.backend import settle_backend
from groupwise.cli.console import make_console, note, say
from groupwise.cli.options import Backend
from groupwise.cli.using import RunOrModel

MEGABYTE = 2**20


def serve(
    run_or_model: RunOrModel,
    host: Annotated[
        str, typer.Option(help="The address to listen at; 0.0.0.0 lets other machines in.", metavar="ADDRESS")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any that is free, and says which.")] = 8000,
    most_megabytes: Annotated[int, typer.Option(min=1, max=1024, help="That a request may hold.")] = 20,
    most_requests: Annotated[
        int, typer.Option(min=1, max=10_000, help="At a time; those beyond are told to come again.")
    ] = 64,
    timeout: Annotated[
        float, typer.Option(min=0.1, max=3600, help="Seconds that a request may take, with its arrival.")
    ] = 30,
    backend: Backend = None,
) -> None:
    """Answer what images show, on a page to drop them on and, for programs, as JSON.

    The page shows the five most likely classes of each image, and where the network looked. Nothing is kept. It
    ends with Ctrl-C.

    Examples: groupwise serve runs/photos

    curl --data-binary @dog.jpg http://127.0.0.1:8000/predict
    """
    from groupwise.serving.server import address_of, open_listener, run

    with closing(open_listener(host, port)) as listener:
        settle_backend(backend)
        from groupwise.inference import load_network
        from groupwise.serving.app import Limits, make_app
        from groupwise.serving.guard import own_names

        limits = Limits(most_megabytes * MEGABYTE, most_requests, timeout)
        network = load_network(run_or_model)
        with make_console(stderr=True).status("getting ready"):
            app = make_app(network, limits, own_names(host))
        if not _is_local(listener):
            note("whoever reaches this machine can use it: there is no password")
        say(make_console(), f"{network.name} at {address_of(listener)} (Ctrl-C ends)")
        run(app, listener, timeout)


def _is_local(listener: socket.socket) -> bool:
    """Return whether only this machine can reach what listens."""
    return ipaddress.ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback
