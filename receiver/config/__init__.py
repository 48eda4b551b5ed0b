"""The configuration: one file, the environment over it, every mistake named at once with its line (contract 3)."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from receiver.config.models import Config, Destination, database_url
from receiver.config.reading import read
from receiver.config.show import effective, schema, secrets_of, template
from receiver.config.sources import gather
from receiver.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from receiver.config.telling import Raw

__all__ = [
    "Config", "ConfigError", "Destination",
    "database_url", "effective", "find", "load", "load_with_sources", "schema", "secrets_of", "servable", "template",
]  # fmt: skip


def find(given: Path | None, environ: Mapping[str, str], cwd: Path) -> Path | None:
    """The config file: `--config`, then `$RECEIVER_CONFIG`, then `./config.toml` if it is there; None for none."""
    if given is not None:
        return given
    named = environ.get("RECEIVER_CONFIG")
    if named:
        return Path(named)
    here = cwd / "config.toml"
    return here if here.exists() else None


def load(path: Path | None, environ: Mapping[str, str], *, overrides: Mapping[str, Any] | None = None) -> Config:
    """The configuration of `path` and `environ`; `overrides` (`{"server.port": 9000}`) come from the command line.

    Raises:
        ConfigError: with every mistake in it.
    """
    return load_with_sources(path, environ, overrides=overrides)[0]


def load_with_sources(
    path: Path | None, environ: Mapping[str, str], *, overrides: Mapping[str, Any] | None = None
) -> tuple[Config, Raw]:
    """The same, with the places its values came from.

    Raises:
        ConfigError: with every mistake in it.
    """
    raw = gather(path, environ, overrides or {})
    config = read(raw)
    if raw.problems:
        raise ConfigError(raw.problems)
    return config, raw


def servable(config: Config, environ: Mapping[str, str]) -> list[str]:
    """What keeps `serve` from starting, each with its mend (contract 3)."""
    found = []
    if not config.security.signing_keys:
        found.append("security.signing_keys: there is none; `receiver init` writes a config with fresh ones")
    if config.upstream.api_key is None:
        found.append("upstream.api_key: there is none; set it, $COMETAPI_KEY or $COMETAPI_API_KEY to your CometAPI key")
    public = config.server.public_url
    local = _is_loopback(config.server.host) and (public is None or _is_loopback(urlsplit(public).hostname))
    if not config.security.api_keys and not local:
        found.append(
            "security.api_keys: there is none, and the service would be reachable from elsewhere; add one "
            "(`receiver init` makes one), or keep server.host on 127.0.0.1 and server.public_url unset"
        )
    if "DYNO" in environ and config.database.url.startswith("sqlite") and "ephemeral=ok" not in config.database.url:
        found.append(
            "database.url: this platform's disk is wiped at every restart, and SQLite lives on it; use PostgreSQL, or "
            "add ?ephemeral=ok to the URL if losing everything is fine"
        )
    return found


def _is_loopback(host: str | None) -> bool:
    """Whether nothing but this machine reaches it. A name other than `localhost` may lead anywhere."""
    try:
        return ip_address(host or "").is_loopback
    except ValueError:
        return host is not None and host.lower() == "localhost"
