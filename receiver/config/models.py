"""What can be set, with its default: the sections of contract 3 as models. Unknown keys and wrong types are refused."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Strict, WithJsonSchema, field_validator

from receiver import routing, signing
from receiver.config.values import RateText, Size, Span, SpanOrZero, duration, positive, suggestion
from receiver.destinations import KINDS
from receiver.errors import SecretError
from receiver.upstream import ROUTES

if TYPE_CHECKING:
    from receiver.destinations.base import Kind

SIGNING_KEY_CHARS = 32


def _http_url(url: str) -> str:
    if re.search(r"[\s\x00-\x1f\x7f\\]", url):
        raise ValueError("a URL has no spaces, control characters or backslashes")
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:  # its words may repeat a password
        raise ValueError("this is no URL: its host or port cannot be read") from None
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError("an absolute URL is wanted, beginning with https:// (or http://)")
    if "?" in url or "#" in url:
        raise ValueError("a query or fragment does not belong in a base URL")
    if "@" in parts.netloc:
        raise ValueError("user and password do not belong in this URL")
    return url.rstrip("/")


def _host(host: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*|[0-9A-Fa-f:.]+(?:%[A-Za-z0-9]+)?", host):
        raise ValueError('an address or a name to listen on is wanted, such as "127.0.0.1", "0.0.0.0" or "::"')
    return host


def _secret(value: str) -> str:
    try:
        signing.check_secret(value)
    except SecretError as error:
        raise ValueError(str(error)) from None
    return value


def _signing_key(value: str) -> str:
    if len(value) < SIGNING_KEY_CHARS:
        raise ValueError(f"it has {len(value)} characters, {SIGNING_KEY_CHARS} or more are wanted")
    return value


def _header(value: str) -> str:
    if not re.fullmatch("[!-~]+", value):
        raise ValueError("it is empty, or not plain ASCII without spaces; it goes into a header")
    return value


def database_url(url: str) -> str:
    """A `database.url` that can be used.

    Raises:
        ValueError: it is none; the words do not repeat it.
    """
    if url.startswith(("postgresql://", "postgres://")):
        if not _POSTGRES.fullmatch(url):
            raise ValueError(
                "postgresql://user:password@host:5432/name is wanted; write @ / ? # [ ] % and blanks in a password "
                "as %40 %2F %3F %23 %5B %5D %25 %20"
            )
        return url
    if not url.startswith("sqlite:///"):
        raise ValueError(
            '"sqlite:///receiver.db" (relative), "sqlite:////var/lib/receiver.db" or "postgresql://…" is wanted'
        )
    path, _, query = url.removeprefix("sqlite:///").partition("?")
    if not path or ":memory:" in path or "mode=memory" in query:
        raise ValueError("a database in memory would lose what was acknowledged; name a file")
    if query not in {"", "ephemeral=ok"}:
        raise ValueError("the only thing that can follow a ? here is ephemeral=ok")
    if not path.isprintable() or path.endswith("/"):
        raise ValueError("the name of a file is wanted after sqlite:///")
    return url


def _event(pattern: str) -> str:
    types = routing.types_of(pattern)
    if not types:
        known = (*sorted(routing.EVENT_TYPES), "task.*", "destination.*")
        near = suggestion(pattern, known) or f"; there are {', '.join(known)}"
        raise ValueError(f'no event is called "{pattern}"{near}')
    return pattern


def _route(route: str) -> str:
    if route not in ROUTES:
        near = suggestion(route, ROUTES) or f"; there are {', '.join(ROUTES)}"
        raise ValueError(f'there is no route "{route}"{near}')
    return route


def _is_scalar(value: Any) -> bool:
    return isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))


def _match_value(value: Any) -> Any:
    values = value if isinstance(value, list) else [value]
    if not values or not all(map(_is_scalar, values)):
        raise ValueError("a value or a list of values (text, numbers, true, false) is wanted")
    return value


def _archive_url(url: str) -> str:
    if not re.fullmatch(r"|file:///[^/\x00-\x1f].*|s3://[^/\s]+(?:/.*)?", url):
        raise ValueError('"file:///var/lib/receiver/renders" or "s3://bucket/prefix" is wanted, or "" for none')
    return url


def _public_base(url: str) -> str:
    return url and _http_url(url)


_URL_PATTERN = "^[hH][tT][tT][pP][sS]?://"
HttpUrl = Annotated[
    str, AfterValidator(_http_url), WithJsonSchema({"type": "string", "format": "uri", "pattern": _URL_PATTERN})
]
_CHAR = r"(?:[^\s/?#@\[\]%]|%(?!00)[0-9a-fA-F]{2})"
_POSTGRES = re.compile(rf"postgres(?:ql)?://(?:{_CHAR}*@)?(?:\[[0-9a-fA-F:.]+\]|{_CHAR})*(?:/{_CHAR}*)?(?:\?[^\s#@]*)?")
"""What libpq and we read alike. Anything else could put a part of a password where the host is shown."""
_DATABASE_URL = {"type": "string", "pattern": "^sqlite:///.|^postgres(?:ql)?://"}
_ARCHIVE_URL = {"type": "string", "pattern": "^$|^file:///.|^s3://."}
_PUBLIC_BASE = {"type": "string", "pattern": f"^$|{_URL_PATTERN}"}
HeaderText = Annotated[str, AfterValidator(_header), WithJsonSchema({"type": "string", "pattern": "^[!-~]+$"})]
SigningKey = Annotated[
    str, AfterValidator(_signing_key), WithJsonSchema({"type": "string", "minLength": SIGNING_KEY_CHARS})
]
Secret = Annotated[
    str, AfterValidator(_secret), WithJsonSchema({"type": "string", "pattern": "^whsec_[A-Za-z0-9+/]+=*$"})
]
Event = Annotated[
    str,
    AfterValidator(_event),
    WithJsonSchema({"enum": [*sorted(routing.EVENT_TYPES), "task.*", "destination.*", "delivery.*", "*"]}),
]
Route = Annotated[str, AfterValidator(_route), WithJsonSchema({"enum": list(ROUTES)})]
_ONE = {"type": ["string", "number", "boolean"]}
MatchValue = Annotated[
    Any,
    AfterValidator(_match_value),
    # A table in it is a dotted path that was written without quotes.
    WithJsonSchema({"anyOf": [_ONE, {"type": "array", "items": _ONE, "minItems": 1}, {"type": "object"}]}),
]
# TOML's lists come as lists; all else is as strict as the rest.
A_LIST = Strict(strict=False)
Spans = Annotated[tuple[SpanOrZero, ...], A_LIST, Field(min_length=1)]
Whole = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class Section(BaseModel):
    """A table of the file."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, hide_input_in_errors=True, arbitrary_types_allowed=True
    )


class Server(Section):
    """Where this program listens, and under which URL it is reached."""

    public_url: HttpUrl | None = None
    host: Annotated[str, AfterValidator(_host)] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    rate_per_key: RateText | None = None
    max_submission: Size = 48 * 1024**2


class Database(Section):
    """Where everything durable is."""

    url: Annotated[str, AfterValidator(database_url), WithJsonSchema(_DATABASE_URL)] = Field(
        "sqlite:///receiver.db", repr=False
    )
    migrate: bool = True


class Security(Section):
    """Keys, oldest first; the last signs, all verify."""

    signing_keys: Annotated[tuple[SigningKey, ...], A_LIST] = Field((), repr=False)
    api_keys: Annotated[tuple[HeaderText, ...], A_LIST] = Field((), repr=False)
    callback_ttl: Span = positive("48h")
    callback_secrets: Annotated[tuple[Secret, ...], A_LIST] = Field((), repr=False)
    allow_private_callbacks: bool = False


class Upstream(Section):
    """The video API, and how submissions go there."""

    base_url: HttpUrl = "https://api.cometapi.com"
    api_key: HeaderText | None = Field(None, repr=False)
    runway_version: HeaderText = "2024-11-06"
    timeout: Span = positive("30s")
    max_concurrency: Whole = 8
    rate: RateText | None = None
    submit_retry: Annotated[tuple[Span, ...], A_LIST, Field(min_length=1)] = tuple(
        positive(text) for text in ("1s", "2s", "5s", "10s", "30s", "60s")
    )
    submit_deadline: Span = positive("6h")
    confirm_callbacks: Literal["odd", "always", "never"] = "odd"


class PollingSection(Section):
    """When the upstream is asked."""

    callback_grace: SpanOrZero = duration("60s")
    interval: Span = positive("5s")
    backoff: Annotated[float, Field(ge=1, le=10, allow_inf_nan=False)] = 1.5
    max_interval: Span = positive("60s")
    jitter: Share = 0.2
    max_concurrency: Whole = 8
    missing_grace: SpanOrZero = duration("120s")
    deadline: Span = positive("25h")


class DeliverySection(Section):
    """How results go out, unless a destination says otherwise."""

    timeout: Span = positive("15s")
    schedule: Spans = tuple(duration(t) for t in ("0s", "5s", "5m", "30m", "2h", "5h", "10h", "14h", "20h", "24h"))
    jitter: Share = 0.2
    max_concurrency: Whole = 64
    circuit_failures: Whole = 10
    circuit_pause: Span = positive("60s")


class Archive(Section):
    """Copies of the renders."""

    url: Annotated[str, AfterValidator(_archive_url), WithJsonSchema(_ARCHIVE_URL)] = ""
    what: Annotated[tuple[Literal["video", "poster", "last_frame"], ...], A_LIST] = (
        "video", "poster", "last_frame",
    )  # fmt: skip
    before_delivery: bool = True
    max_bytes: Size = 2 * 1024**3
    public_base: Annotated[str, AfterValidator(_public_base), WithJsonSchema(_PUBLIC_BASE)] = ""
    link_ttl: Span = positive("7d")
    allow_private: bool = False


class Retention(Section):
    """How long what has ended is kept."""

    tasks: Span = positive("30d")


class Logging(Section):
    """The lines on stdout."""

    format: Literal["json", "console", "auto"] = "auto"
    level: Literal["debug", "info", "warning", "error"] = "info"


class Destination(Section):
    """The keys that all kinds share; `options` are the kind's own, in the same table."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9-]{1,64}$")]
    kind: str
    events: Annotated[tuple[Event, ...], A_LIST, Field(min_length=1)] | None = None
    routes: Annotated[tuple[Route, ...], A_LIST, Field(min_length=1)] | None = None
    match: dict[Annotated[str, Field(min_length=1)], MatchValue] = Field(default_factory=dict)
    rate: RateText | None = None
    coalesce: RateText | None = None
    max_concurrency: Whole = 8
    allow_private: bool = False
    schedule: Spans | None = None
    jitter: Share | None = None
    timeout: Span | None = None
    circuit_failures: Whole | None = None
    circuit_pause: Span | None = None
    options: Any = Field(default=None, exclude=True, repr=False)

    @field_validator("kind")
    @classmethod
    def _is_built(cls, kind: str) -> str:
        if kind not in KINDS:
            raise ValueError(f'there is no kind "{kind}"{suggestion(kind, KINDS) or "; there are " + ", ".join(KINDS)}')
        return kind

    @field_validator("match", mode="before")
    @classmethod
    def _is_flat(cls, match: Any) -> Any:
        """`{ metadata.team = "vfx" }` without quotes is a table in a table to TOML; the same is meant."""
        return _flat(match) if isinstance(match, dict) else match


def shared_keys(kind: Kind | None) -> list[str]:
    """The keys of `Destination` that a table of that kind can have: `coalesce` only where events can be summed up."""
    left_out = {"options"} if kind is None or kind.summary else {"options", "coalesce"}
    return [name for name in Destination.model_fields if name not in left_out]


def _flat(table: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in table.items():
        inner = _flat(value) if isinstance(value, dict) and value else None
        found |= {key: value} if inner is None else {f"{key}.{name}": one for name, one in inner.items()}
    return found


class Config(Section):
    """All of it."""

    server: Server = Server()
    database: Database = Database()
    security: Security = Security()
    upstream: Upstream = Upstream()
    polling: PollingSection = PollingSection()
    delivery: DeliverySection = DeliverySection()
    archive: Archive = Archive()
    retention: Retention = Retention()
    logging: Logging = Logging()
    destinations: tuple[Destination, ...] = ()


SECTIONS: dict[str, type[Section]] = {
    "server": Server,
    "database": Database,
    "security": Security,
    "upstream": Upstream,
    "polling": PollingSection,
    "delivery": DeliverySection,
    "archive": Archive,
    "retention": Retention,
    "logging": Logging,
}
SECRET_KEYS = {
    "security.signing_keys": True,
    "security.api_keys": True,
    "security.callback_secrets": True,
    "upstream.api_key": False,
}
"""Keys that hold secrets, and whether they are lists; each has a `…_file` beside it. Destinations': `Kind.secrets`."""
