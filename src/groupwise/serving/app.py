"""The application: which requests there are, and how they are answered."""

import asyncio
import io
from collections.abc import AsyncIterator, Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from numpy.typing import NDArray
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from groupwise.data.images import BrokenImage, LargeImage, UnknownImage, is_picture, read_image, unknown_format
from groupwise.errors import UserError, naming
from groupwise.inference.evaluation import TOP
from groupwise.inference.guesses import Classes
from groupwise.inference.matching import place_of
from groupwise.inference.preprocessing import preprocessing_of
from groupwise.machine import usable_cores
from groupwise.models.network import Network, RewrittenNetwork
from groupwise.serving.answers import answer, failure
from groupwise.serving.batching import Answer, Batcher, Closed, Failed
from groupwise.serving.drawing import picture_address
from groupwise.serving.guard import Guard, own_names
from groupwise.serving.page import Page

_DECODERS = 4  # threads at most that decode: an image of the largest size takes a gigabyte while it is read
_STATUS = {UnknownImage: 415, LargeImage: 413}  # of other images that cannot be read: 422
_OF_PATHS = {404: "there is nothing here: see /, /predict, /classes and /health", 405: "this path takes {taken}"}
_FORMS = "multipart/form-data"
_IMAGE = "the image"


@dataclass(frozen=True)
class Limits:
    """What a server takes.

    Attributes:
        most_bytes: that a request may hold.
        most_requests: for predictions at a time; those beyond are told to come again.
        seconds: that a prediction may take, with the request's arrival.
    """

    most_bytes: int = 20 * 2**20
    most_requests: int = 64
    seconds: float = 30.0

    def __post_init__(self) -> None:
        for name in ("most_bytes", "most_requests", "seconds"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)}: must be positive")


def make_app(
    network: Network | RewrittenNetwork, limits: Limits | None = None, names: Collection[str] | None = None
) -> FastAPI:
    """Return an ASGI application that answers what images show, for uvicorn and its like.

    The network is run a few times first, in every size that a batch may have. Its thread ends with the application's
    lifespan.

    Args:
        network: with class names and preprocessing in its metadata, as `inference.load_network` gives it.
        limits: what the server takes. Default: `Limits()`.
        names: by which it may be called beside addresses. Default: localhost and the machine's name.

    Raises:
        UserError: its metadata do not say how it wants its images.
    """
    limits = limits or Limits()
    service = _Service(network, limits)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()

    app = FastAPI(title="groupwise", openapi_url=None, lifespan=lifespan)
    app.add_api_route("/", service.page, methods=["GET"])
    app.add_api_route("/health", service.health, methods=["GET"])
    app.add_api_route("/classes", service.list_classes, methods=["GET"])
    app.add_api_route("/predict", service.predict, methods=["POST"])
    app.add_exception_handler(HTTPException, _on_refusal)
    app.add_exception_handler(RequestValidationError, _on_bad_query)
    app.add_exception_handler(ClientDisconnect, _on_disconnect)
    app.add_exception_handler(Exception, _on_error)
    app.add_middleware(Guard, own_names("localhost") if names is None else names, limits.most_bytes)
    return app


class _Service:
    """A network, its classes, and the answers about them."""

    def __init__(self, network: Network | RewrittenNetwork, limits: Limits) -> None:
        self._limits = limits
        self._classes = Classes.of(network.metadata["class_names"])
        self._preprocessing = preprocessing_of(network)
        *size, self._channels = network.architecture["input_shape"]
        self._size = (size[0], size[1])
        self._batcher = Batcher(network)
        self._decoders = ThreadPoolExecutor(min(_DECODERS, usable_cores()), "groupwise-decoding")
        self._running = 0
        self._name = network.name
        self._page = Page(
            name=self._name,
            classes=len(self._classes.names),
            size=self._size,
            explains=self._batcher.objection is None,
            most_bytes=limits.most_bytes,
        )

    def close(self) -> None:
        self._batcher.close()
        self._decoders.shutdown(cancel_futures=True)

    async def page(self) -> Response:
        """Return the page for people."""
        return Response(self._page.text, media_type="text/html", headers={"Content-Security-Policy": self._page.policy})

    async def health(self) -> Response:
        """Say whether images are answered, and how many are on their way."""
        alive = self._batcher.is_alive()
        return answer({"status": "ok" if alive else "stopped", "requests": self._running}, 200 if alive else 503)

    async def list_classes(self) -> Response:
        """Return the network's classes in the order of its outputs, and what it wants."""
        rows = zip(self._classes.names, self._classes.ids, strict=True)
        return answer(
            {
                "network": self._name,
                "image_size": self._size,
                "heat_maps": self._batcher.objection is None,
                "classes": [
                    {"class": name, "index": place, "wordnet_id": identifier}
                    for place, (name, identifier) in enumerate(rows)
                ],
            }
        )

    async def predict(
        self,
        request: Request,
        top: Annotated[int, Query(ge=1)] = TOP,
        heat_map: bool = False,
        explained: Annotated[str | None, Query(alias="class")] = None,
    ) -> Response:
        """Say what the image in a request shows."""
        place = self._explained(heat_map, explained)
        with self._one_more():
            arrived = False
            try:
                async with asyncio.timeout(self._limits.seconds):
                    content = await _content(request)
                    arrived = True
                    found = await self._answer(content, heat_map, place)
                    result: dict[str, Any] = {"top": self._classes.guesses(found.probabilities, top)}
                    if found.heat_map is not None:
                        result["heat_map"] = await self._decode(self._draw, content, found.heat_map)
            except TimeoutError:
                status, what = (504, "was not answered") if arrived else (408, "did not arrive")
                raise HTTPException(status, f"the image {what} within {self._limits.seconds:g} seconds") from None
            except Closed as error:
                raise HTTPException(503, str(error)) from None
            except Failed as error:
                raise HTTPException(500, str(error)) from None
        return answer(result)

    def _explained(self, heat_map: bool, name: str | None) -> int | None:
        """Return the class that a heat map is wanted of; None for the likeliest. Raises HTTPException (422)."""
        if heat_map and self._batcher.objection is not None:
            raise HTTPException(422, f"heat_map=true: {self._batcher.objection}")
        if name is None:
            return None
        if not heat_map:
            raise HTTPException(422, f"class={name}: is of the heat map; add heat_map=true")
        try:
            with naming(lambda _, value: f"class={value}"):
                return place_of(name, self._classes.names, self._classes.ids)
        except UserError as error:
            raise HTTPException(422, str(error)) from None

    @contextmanager
    def _one_more(self) -> Iterator[None]:
        """Count a request while it is answered. Raises HTTPException (503) where there are too many."""
        if self._running >= self._limits.most_requests:
            raise HTTPException(
                503, f"{self._running} requests are being answered: come again later", {"Retry-After": "1"}
            )
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1

    async def _answer(self, content: bytes, explains: bool, explained: int | None) -> Answer:
        image = await self._decode(self._prepare, content)
        return await _awaited(self._batcher.submit(image, explains, explained))

    async def _decode(self, work: Any, *arguments: Any) -> Any:
        """Return what one of the decoding threads makes; a request given up before its turn is not worked on."""
        try:
            return await _awaited(self._decoders.submit(work, *arguments))
        except BrokenImage as error:
            # What a decoder says in brackets may be anything.
            reason = error.reason.partition(" (")[0]
            raise HTTPException(_STATUS.get(type(error), 422), f"{_IMAGE} cannot be read: {reason}") from None

    def _prepare(self, content: bytes) -> NDArray[np.float32]:
        return self._preprocessing.apply(_read(content, self._channels), self._size)

    def _draw(self, content: bytes, heat: NDArray[np.float32]) -> str:
        image = _read(content, 3)
        return picture_address(image, heat, self._preprocessing.crop_box(image.shape[:2], self._size))


def _read(content: bytes, channels: int) -> NDArray[np.uint8]:
    """Return the image that somebody sent, of the kinds that are known by how they begin.

    Not of all that Pillow reads: some kinds start another program (EPS Ghostscript).

    Raises:
        BrokenImage: it is none, too large, or damaged.
    """
    if not is_picture(io.BytesIO(content), with_tiff=True):
        raise UnknownImage(_IMAGE, unknown_format(content))
    return read_image(content, channels, name=_IMAGE)


async def _content(request: Request) -> bytes:
    """Return the image's bytes: a request's body, or the one file of a form.

    Raises:
        HTTPException: 400 where there is none, or the form is damaged; 413 where it is too large; 422 where there are
            several.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != _FORMS:
        content = await request.body()
    else:
        async with request.form() as form:
            files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
            if len(files) > 1:
                raise HTTPException(422, f"the form holds {len(files)} files: send one image in a request")
            content = await files[0].read() if files else b""
    if not content:
        raise HTTPException(400, "there is no image: send one as the request's body, or as a file of a form")
    return content


async def _awaited(future: "Future[Any]") -> Any:
    """Return a future's result; where the waiting is given up, the future is cancelled if it has not begun."""
    return await asyncio.wrap_future(future)


async def _on_refusal(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    # The framework's own, of paths and methods, are names of their codes.
    taken = (error.headers or {}).get("Allow")
    sentence = _OF_PATHS[error.status_code].format(taken=taken) if error.status_code in _OF_PATHS else error.detail
    return failure(error.status_code, sentence, error.headers)


async def _on_bad_query(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    return failure(422, f"{first['loc'][-1]}={first.get('input')}: {first['msg'][:1].lower()}{first['msg'][1:]}")


async def _on_disconnect(_: Request, __: Exception) -> Response:
    return failure(400, "the request did not arrive")


async def _on_error(_: Request, __: Exception) -> Response:
    """Say that it failed; what and why stands in the server's own log."""
    return failure(500, "the server failed; its log says why")
