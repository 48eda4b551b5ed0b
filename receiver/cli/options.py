"""Options that many commands share, and the way from them to a config or to a running service (contract 2)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar
from urllib.parse import urlsplit

import typer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from receiver.client import AsyncClient, Client
    from receiver.config import Config

T = TypeVar("T")

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="The config file; else $RECEIVER_CONFIG, else ./config.toml.",
        metavar="FILE",
        show_default=False,
    ),
]
UrlOption = Annotated[
    str | None,
    typer.Option(
        "--url",
        help="The running service; else $RECEIVER_URL, else the config's host and port. "
        "The key is $RECEIVER_API_KEY, else the config's last api_keys.",
        metavar="URL",
        show_default=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
LimitOption = Annotated[int, typer.Option(help="At most so many.", min=1)]
CursorOption = Annotated[
    str | None, typer.Option(help="Go on from a page's next_cursor (see --json).", show_default=False)
]
TaskArgument = Annotated[str, typer.Argument(help="The task's id.", metavar="ID", show_default=False)]

_ANY: dict[str, str] = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104 -- where a service binds to all


def load(path: Path | None, overrides: Mapping[str, Any] | None = None) -> Config:
    """The config, read and checked; `overrides` are what the command line says over it.

    Raises:
        ConfigError: with every mistake there is.
    """
    from receiver import config

    return config.load(config.find(path, os.environ, Path.cwd()), os.environ, overrides=overrides)


def service_url(settings: Config) -> str:
    """Where a service with this config is reached from this machine."""
    host = _ANY.get(settings.server.host, settings.server.host)
    return f"http://[{host}]:{settings.server.port}" if ":" in host else f"http://{host}:{settings.server.port}"


def connect(path: Path | None, url: str | None) -> Client:
    """A client of the running service; the config is read only for what is not given otherwise.

    Raises:
        ConfigError: the config is needed, and cannot be used.
        typer.BadParameter: the URL or the key is none.
    """
    from receiver.client import Client

    return _connected(Client, path, url)


def connect_async(path: Path | None, url: str | None) -> AsyncClient:
    """The same, to be awaited."""
    from receiver.client import AsyncClient

    return _connected(AsyncClient, path, url)


def _connected(kind: Callable[[str, str | None], T], path: Path | None, url: str | None) -> T:
    where, key = url or os.environ.get("RECEIVER_URL"), os.environ.get("RECEIVER_API_KEY")
    settings = load(path) if path is not None or not where or not key else None
    if settings is not None:
        where = where or service_url(settings)
        key = key or (settings.security.api_keys[-1] if settings.security.api_keys else None)
    try:
        return kind(where or "", key)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--url") from None


def same_place(one: str, other: str) -> bool:
    """Whether two URLs name one service on this machine, `localhost` and the loopback addresses being the same."""

    def place(url: str) -> tuple[str, int | None]:
        parts = urlsplit(url)
        host = parts.hostname or ""
        return ("loopback" if host in {"localhost", "127.0.0.1", "::1"} else host), parts.port

    try:
        return place(one) == place(other)
    except ValueError:
        return False
