"""A model behind HTTP: what is asked, and what is answered."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from importlib.metadata import version
from importlib.resources import files
from typing import Annotated, Any

from fastapi import FastAPI, Query
from jinja2 import Environment, PackageLoader, StrictUndefined
from msgspec.json import encode
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.staticfiles import StaticFiles

from fx.serve.batching import Batcher
from fx.serve.limits import AGAIN, FORM, Bodies, Limits, Upload
from fx.stages.predictions import Wanted

TOP = 5  # classes that are told of each image, by default
POLICY = (
    "default-src 'none'; connect-src 'self'; img-src 'self' blob: data:; script-src 'self'; "
    "style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class LikelyClass(BaseModel):
    """A class, and its probability."""

    label: str
    probability: float


class Labelled(BaseModel):
    """What the model says of an image; ``path`` is the file's name, as it was sent."""

    path: str
    label: str
    probability: float
    top: list[LikelyClass] | None = None
    probabilities: dict[str, float] | None = None


class Unread(BaseModel):
    """An image that cannot be read, and why."""

    path: str
    error: str


class Labels(BaseModel):
    """Of every image, in the order in which they were sent."""

    predictions: list[Labelled | Unread]


class NearImage(BaseModel):
    """A training image, and how far it is; ``image`` is a data URI, empty of one that is gone."""

    path: str
    label: str
    distance: float
    image: str


class Reasons(BaseModel):
    """What speaks for a label: a heat map, as a data URI, and the nearest training images."""

    label: str
    heat_map: str | None
    why_no_heat_map: str
    nearest: list[NearImage]
    nearest_by: str


class Problem(BaseModel):
    """Why there is no answer."""

    detail: str


class Health(BaseModel):
    """What is served."""

    status: str
    model: str
    classes: int


@dataclass(frozen=True)
class Metrics:
    """What Prometheus is told; each application has its own."""

    registry: CollectorRegistry
    requests: Counter
    seconds: Histogram
    images: Counter

    @classmethod
    def of(cls, batcher: Batcher) -> Metrics:
        """Begin to count; batches and images under way are the batcher's."""
        registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        under_way = Gauge("fx_images_under_way", "Images not yet answered", registry=registry)
        under_way.set_function(lambda: batcher.under_way)
        sizes = [1, 2, 4, 8, 16, 32, 64, 128, 256]
        batches = Histogram("fx_batch_images", "In a batch", buckets=sizes, registry=registry)
        batcher.observe = batches.observe
        return cls(
            registry,
            Counter("fx_requests", "Answered", ["path", "status"], registry=registry),
            Histogram("fx_request_seconds", "To answer", ["path"], registry=registry),
            Counter("fx_images", "Answered", ["outcome"], registry=registry),
        )


def make_app(name: str, batcher: Batcher, limits: Limits, hosts: Sequence[str] = ("*",)) -> FastAPI:
    """Make the application.

    Parameters
    ----------
    name : of the model, as it is told
    batcher : running
    limits : from where on requests are refused
    hosts : names that requests may call this server by; others have status 400
    """
    model = batcher.model
    app = FastAPI(
        title="fx serve",
        version=version("fx-images"),
        description=f"Labels images with {name}.",
        # they load their scripts from elsewhere
        docs_url=None,
        redoc_url=None,
    )
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts)
    bodies, metrics = Bodies(limits), Metrics.of(batcher)
    statuses = (400, 408, 413, 415, 503, 504)
    problems: dict[int | str, dict[str, Any]] = {
        status: {"model": Problem, "description": HTTPStatus(status).phrase} for status in statuses
    }

    @asynccontextmanager
    async def measured(request: Request) -> AsyncIterator[list[Upload]]:
        """Give a request's files, within the limits; count and time it."""
        path, begun, status = request.url.path, time.perf_counter(), 500
        try:
            async with bodies.uploads(request) as uploads:
                if batcher.under_way + len(uploads) > limits.queue:
                    raise HTTPException(503, "too many images wait; try again", AGAIN)
                async with asyncio.timeout(limits.timeout):
                    yield uploads
            status = request.state.status
        except TimeoutError:
            status = 504
            raise HTTPException(504, f"no answer within {limits.timeout} s") from None
        except HTTPException as problem:
            status = problem.status_code
            raise
        finally:
            metrics.requests.labels(path, status).inc()
            metrics.seconds.labels(path).observe(time.perf_counter() - begun)

    @app.post(
        "/predict",
        responses=problems | {200: {"model": Labels}, 422: {"model": Labels}},
        openapi_extra={"requestBody": _request_body(limits.images)},
    )
    async def predict(
        request: Request,
        top: Annotated[int, Query(ge=0, description="The likeliest classes to tell.")] = TOP,
        probabilities: Annotated[bool, Query(description="Tell those of all classes.")] = False,
    ) -> Response:
        """Label images. The status is 422 where none of them can be read."""
        wanted = Wanted(top, probabilities)
        async with measured(request) as uploads:
            found = await batcher.classify([upload.file for upload in uploads])
            said: list[dict[str, Any]] = []
            for upload, row in zip(uploads, found, strict=True):
                if isinstance(row, str):
                    said.append({"path": upload.name, "error": row})
                else:
                    one = wanted.prediction(upload.name, row.probabilities, model.classes)
                    said.append(one.as_json())
            unread = sum("error" in one for one in said)
            metrics.images.labels("unreadable").inc(unread)
            metrics.images.labels("classified").inc(len(said) - unread)
            request.state.status = 422 if unread == len(said) else 200
        return _json({"predictions": said}, request.state.status)

    async def explain(request: Request) -> Response:
        """Tell why an image gets its label; the status is 422 where it cannot be read."""
        assert model.explain, "only then there is this path"
        async with measured(request) as uploads:
            if len(uploads) > 1:
                raise HTTPException(413, "one image in a request is explained")
            file = uploads[0].file
            (answer,) = await batcher.classify([file])
            if isinstance(answer, str):
                raise HTTPException(422, answer)
            file.seek(0)
            pixels = await asyncio.to_thread(lambda: model.read(file.read()))
            found = await asyncio.to_thread(model.explain, pixels, answer)
            request.state.status = 200
        return _json(found, 200)

    if model.explain:
        app.post(
            "/explain",
            responses=problems | {200: {"model": Reasons}, 422: {"model": Problem}},
            openapi_extra={"requestBody": _request_body(1)},
        )(explain)

    @app.get("/healthz")
    async def healthz() -> Health:
        """Whether images are answered."""
        return Health(status="ok", model=name, classes=len(model.classes))

    @app.get("/metrics", response_class=Response)
    async def tell_metrics() -> Response:
        """Counters, in the text format of Prometheus."""
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    page = _templates().get_template("page.html")
    shown = {"classes": model.classes, "explains": model.explain is not None}

    @app.get("/", include_in_schema=False)
    async def show_page(request: Request) -> HTMLResponse:
        content = page.render(name=name, url=str(request.base_url), limits=limits, **shown)
        return HTMLResponse(content, headers={"Content-Security-Policy": POLICY})

    style = files("fx.report").joinpath("report.css").read_bytes()

    @app.get("/report.css", include_in_schema=False)
    async def show_style() -> Response:
        return Response(style, media_type="text/css")

    app.mount("/page", StaticFiles(packages=[("fx.serve", "page")]))
    return app


def _json(value: Any, status: int) -> Response:
    return Response(encode(value), status, media_type="application/json")


def _request_body(images: int) -> dict[str, Any]:
    """Say in the terms of OpenAPI what is read by hand, so that the limits hold."""
    file = {"type": "string", "format": "binary"}
    form = {
        "type": "object",
        "required": ["images"],
        "properties": {"images": {"type": "array", "items": file, "maxItems": images}},
    }
    return {
        "required": True,
        "description": "Files of a form, under any names; or one image, with its own type.",
        "content": {FORM: {"schema": form}, "image/*": {"schema": file}},
    }


def _templates() -> Environment:
    return Environment(
        loader=PackageLoader("fx.serve", "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
