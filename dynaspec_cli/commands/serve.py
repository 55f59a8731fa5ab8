"""``dynaspec serve``: options and printing; dynaspec_cli/server does the work."""

from __future__ import annotations

import time

import click

from dynaspec_cli.commands.loading import load_engine
from dynaspec_cli.commands.options import CommonOptions
from dynaspec_cli.commands.request import RequestOptions, request_options
from dynaspec_cli.errors import DynaSpecError, UsageError
from dynaspec_cli.installing import extra


@click.command(
    epilog="""\b
Examples:
  dynaspec serve
  dynaspec serve --model FOLDER --port 8080 --api-key KEY
  curl http://127.0.0.1:8000/v1/completions -d '{"prompt": "The capital of France is"}'

\b
/v1/chat/completions, /v1/completions, /v1/models, /health, /metrics. One
request is answered at a time, the others wait. Ctrl-C ends the server.
"""
)
@click.option("--host", default="127.0.0.1", metavar="ADDRESS", help="Where to listen.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, help="0: any free one.")
@click.option(
    "--api-key",
    metavar="KEY",
    show_default=False,
    help="Ask for it; better set DYNASPEC_API_KEY, since others can read a command line.  "
    "[default: ask for none]",
)
@click.option(
    "--max-queue",
    type=click.IntRange(min=0),
    default=32,
    metavar="N",
    help="Requests that may wait; more are refused (429).",
)
@click.option(
    "--max-body",
    type=click.IntRange(min=1),
    default=4 << 20,
    metavar="BYTES",
    help="Larger requests are refused (413).",
)
@click.option(
    "--served-model-name", metavar="NAME", help="Name to be asked for.  [default: the model's own]"
)
@request_options(
    1.0, "New tokens of a request that names no limit; what it names may be more.", system=False
)
def serve(
    common: CommonOptions,
    request: RequestOptions,
    host: str,
    port: int,
    api_key: str | None,
    max_queue: int,
    max_body: int,
    served_model_name: str | None,
) -> None:
    """Serve a model to OpenAI clients. Sampling options are the defaults of requests that do not
    name them; without a seed of its own every request draws fresh randomness."""
    if common.json:
        raise UsageError("--json: the server prints no result; its answers are JSON already")
    if api_key is not None and not api_key.strip():
        raise UsageError("--api-key: expected a key, got an empty one")
    try:
        from dynaspec_cli.server.app import ServerOptions, Service
        from dynaspec_cli.server.listen import bind, is_loopback, serve, url
    except ModuleNotFoundError as error:
        raise DynaSpecError(f"dynaspec serve needs {error.name}: {extra('serve')}") from error

    def log(line: str) -> None:
        if not common.quiet:
            click.echo(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}", err=True)

    bound = bind(host, port)
    if not is_loopback(host):
        missing = "" if api_key else ", and without --api-key anyone there can use it"
        click.echo(f"Warning: --host {host} is reachable from other machines{missing}", err=True)
    engine = load_engine(common, request.drafter, request.drafter_option, tell=True)
    config = request.config
    if request.speculative and engine.drafter is not None and engine.drafter.head is not None:
        engine.shortlist(config.shortlist, config.tree.depth)
    service = Service(
        engine,
        ServerOptions(
            model=served_model_name or engine.target.name,
            defaults=config,
            chat_arguments=request.chat_arguments,
            speculative=request.speculative,
            api_key=None if api_key is None else api_key.strip(),
            max_queue=max_queue,
            max_body=max_body,
        ),
    )
    serve(service, bound, log, lambda: log(f"{service.options.model} on {url(bound)}/v1"))
