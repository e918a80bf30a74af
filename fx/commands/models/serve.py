"""``fx serve``: a model behind HTTP."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fx.commands import arguments
from fx.commands.arguments import options_in
from fx.output import printable, progress_bars, to_json

if TYPE_CHECKING:
    from fx.serve.serving import Serving

LONGEST = 120  # seconds


def serve(
    model: Annotated[Path, typer.Argument(help="Folder written by fit-head or finetune.")],
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Listen there; 0.0.0.0: to all networks.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8000,
    max_request_mb: Annotated[
        int, typer.Option("--max-request-mb", min=1, max=1024, help="Of one request's body.")
    ] = 32,
    max_images: Annotated[int, typer.Option(min=1, help="In one request.")] = 64,
    max_image_mb: arguments.MaxImageMB = 192,
    queue: Annotated[
        int, typer.Option(min=1, help="Images of all requests that are not yet answered.")
    ] = 512,
    timeout: Annotated[
        int,
        typer.Option(
            metavar="SECONDS",
            min=1,
            max=LONGEST,
            help="For a request to arrive, and then to be answered.",
        ),
    ] = 30,
    connections: Annotated[int, typer.Option(min=1, help="Open at once.")] = 512,
    no_explain: Annotated[
        bool, typer.Option("--no-explain", help="Show neither heat maps nor training images.")
    ] = False,
    store: arguments.Store = arguments.FEATURES,
    precision: arguments.StoredPrecision = "auto",
    device: arguments.Device = "auto",
    engine: arguments.EngineName = "auto",
    batch_size: arguments.BatchSize = None,
    json_: arguments.Json = False,
    debug: arguments.Debug = False,
) -> None:
    """Serve a model over HTTP, with a page to try it on."""
    options = options_in(locals())
    from fx.serve import check_installed

    check_installed()
    from fx.serve.limits import Limits
    from fx.serve.serving import serve_model

    limits = Limits(max_request_mb, max_images, queue, timeout, connections)

    def begun(record: Serving) -> None:
        if not record.local:
            shown = ", and is shown training images (`no_explain`)" if record.explains else ""
            warnings.warn(
                f"whoever reaches {record.url} can use it{shown}: there is no password, and no "
                "encryption",
                stacklevel=1,
            )
        if json_:
            print(to_json(record), flush=True)
        else:
            _print(record)

    with progress_bars(quiet=json_) as begin:
        serve_model(
            model,
            options,
            limits,
            host=host,
            port=port,
            begin=None if no_explain else begin,
            begun=begun,
        )


def _print(record: Serving) -> None:
    print(printable(f"{record.model}: {len(record.classes)} classes, at {record.url}"))
    print("Ctrl-C ends it, once the requests under way are answered", flush=True)
