"""`receiver serve`, `init` and `config …`: everything around the one process and its config."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from receiver.cli import output
from receiver.cli.options import ConfigOption, JsonOption, load, service_url

if TYPE_CHECKING:
    from receiver.config import Config
    from receiver.logs import Logger

config_app = typer.Typer(no_args_is_help=True, help="Check and show the configuration.")


# -- serve -------------------------------------------------------------------------------------------------------------


def serve(
    *,
    host: Annotated[
        str | None, typer.Option(help="Address to listen on; else server.host.", metavar="HOST", show_default=False)
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            help="Port to listen on; else RECEIVER_SERVER__PORT, $PORT, server.port.",
            metavar="N",
            min=1,
            max=65535,
            show_default=False,
        ),
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Run the service, until SIGTERM or Ctrl-C.

    Example:
      receiver serve
      receiver serve --config /etc/receiver/config.toml --port 8080
    """
    said = {"server.host": host, "server.port": port}
    settings = load(config, {name: value for name, value in said.items() if value is not None})
    _refuse_unservable(settings)
    _check_port(settings.server.host, settings.server.port)

    from receiver import logs

    logs.configure(settings.logging.format, settings.logging.level)
    _warn(settings, logs.get())
    if output.err().is_terminal:
        output.hint(f"The service comes up on {service_url(settings)}. Ctrl-C ends it.")
    _run(settings)


def _refuse_unservable(settings: Config) -> None:
    from receiver import config

    problems = config.servable(settings, os.environ)
    if problems:
        raise config.ConfigError(problems)


def _check_port(host: str, port: int) -> None:
    """Say that the port cannot be had before anything is opened.

    Raises:
        Failed: it is taken, or not ours to take.
    """
    import socket

    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as door:
            door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            door.bind(address)
    except OSError as error:
        raise output.Failed(
            f"cannot listen on {host}:{port}: {error.strerror or error}; choose another by --host and --port, "
            "or by server.host and server.port"
        ) from None


def _warn(settings: Config, log: Logger) -> None:
    for destination in settings.destinations:
        if destination.kind == "webhook" and not destination.options.secrets:
            log.warning(
                "destination.unsigned",
                destination=destination.name,
                mend="it cannot tell our webhooks from a stranger's: add `secrets` to it",
            )
    if settings.server.public_url is None:
        log.info("callbacks.off", reason="server.public_url is not set: every task is polled")


def _run(settings: Config) -> None:
    """The service in the loop uvicorn would choose: uvloop where there is one."""
    import asyncio

    from uvicorn.config import Config as UvicornConfig

    from receiver.app import serve as serve_service

    try:
        # Without log_config=None it would set up uvicorn's own logging, access log and all.
        loops = UvicornConfig(app="", log_config=None).get_loop_factory()
        with asyncio.Runner(loop_factory=loops) as runner:
            runner.run(serve_service(settings))
    except SystemExit:
        # uvicorn's word for a port that was taken in the moment since it was looked at; it has logged why.
        raise output.Failed(
            f"cannot listen on {settings.server.host}:{settings.server.port}; the log says why"
        ) from None


# -- init --------------------------------------------------------------------------------------------------------------


def init(
    *,
    path: Annotated[
        Path | None, typer.Option(help="Where to write it; else --config, else ./config.toml.", show_default=False)
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Write a commented config with fresh secrets, readable by you alone. Never overwrites.

    Example:
      receiver init
      receiver init --path /etc/receiver/config.toml
    """
    import base64

    from receiver.config import template

    target = path or config or Path("config.toml")
    secret = "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
    text = template(secrets.token_urlsafe(48), secrets.token_urlsafe(32), secret)
    _write_new(target, text)
    named = "" if target == Path("config.toml") else f" --config {target}"
    output.say(f"Wrote {target}, with fresh secrets, readable by you alone. What is left to do:")
    output.say("  1. Set COMETAPI_KEY in the environment to your CometAPI key.")
    output.say("  2. In the file, set server.public_url to where the upstream reaches this program;")
    output.say("     without it everything works too, but every task is polled.")
    output.say("  3. Add a [[destinations]] table: where the results go.")
    output.say(f"  4. receiver config check{named}")
    output.say(f"     receiver serve{named}")


def _write_new(target: Path, text: str) -> None:
    try:
        handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise output.Failed(f"{target} is there already, and is never overwritten; name another by --path") from None
    except OSError as error:
        raise output.Failed(f"cannot write {target}: {error.strerror}") from None
    with open(handle, "w", encoding="utf-8") as file:  # noqa: PTH123 -- it is a descriptor
        file.write(text)


# -- config ------------------------------------------------------------------------------------------------------------


@config_app.command("check")
def check_config(*, json: JsonOption = False, config: ConfigOption = None) -> None:
    """Name every mistake at once, as file:line: key: reason; 2 where there is one.

    Example:
      receiver config check
      receiver config check --config /etc/receiver/config.toml
    """
    from receiver import config as rooms

    path = rooms.find(config, os.environ, Path.cwd())
    try:
        settings = rooms.load(path, os.environ)
    except rooms.ConfigError as error:
        if json:
            output.document({"file": path and str(path), "problems": error.problems, "serve": []})
        for problem in error.problems:
            output.say(problem, console=output.err())
        raise typer.Exit(output.USAGE) from None
    refusals = rooms.servable(settings, os.environ)
    if json:
        output.document({"file": path and str(path), "problems": [], "serve": refusals})
        return
    output.say(f"{path or 'The defaults and the environment (there is no file)'}: no mistakes")
    for refusal in refusals:
        output.say(output.styled("`receiver serve` would not start: ", "yellow"), refusal, console=output.err())


@config_app.command("show")
def show_config(*, json: JsonOption = False, config: ConfigOption = None) -> None:
    """Show every effective value and where it was set; secrets are masked.

    Example:
      receiver config show
      receiver config show --json
    """
    import json as jsons

    from receiver import config as rooms
    from receiver.config import load_with_sources

    path = rooms.find(config, os.environ, Path.cwd())
    values = rooms.effective(*load_with_sources(path, os.environ))
    if json:
        output.document({key: {"value": value, "source": source} for key, value, source in values})
        return
    table = output.table("KEY", "SET BY", "VALUE")
    for key, value, source in values:
        shown = "" if value is None else output.clean(jsons.dumps(value, ensure_ascii=False))
        table.add_row(key, output.styled(source, "dim" if source == "default" else ""), shown)
    output.out().print(table)


@config_app.command("schema")
def print_schema(
    *,
    json: JsonOption = False,  # noqa: ARG001 -- it is JSON anyway
    config: ConfigOption = None,  # noqa: ARG001 -- every command takes it
) -> None:
    """Print the JSON Schema of the config, for editors.

    Example:
      receiver config schema > receiver.schema.json
    """
    from receiver import config as rooms

    output.document(rooms.schema())
