"""What each room wants to know, from the configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from receiver import deliver, health
from receiver.destinations import KINDS
from receiver.destinations.webhook import WebhookOptions
from receiver.ingest import Polling
from receiver.pace import Rate
from receiver.routing import OWN_CALLBACK, Rule
from receiver.submit import Gates, Terms

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from receiver.config import Config


def upstream_headers(config: Config) -> dict[str, str]:
    """What every request to the upstream bears."""
    return {
        "authorization": f"Bearer {config.upstream.api_key}",
        "x-runway-version": config.upstream.runway_version,
    }


def destination(config: Config, given: Any) -> deliver.Destination:
    """One configured destination."""
    base = config.delivery
    return deliver.Destination(
        name=given.name,
        kind=KINDS[given.kind],
        options=given.options,
        schedule=base.schedule if given.schedule is None else given.schedule,
        jitter=base.jitter if given.jitter is None else given.jitter,
        timeout=(base.timeout if given.timeout is None else given.timeout).total_seconds(),
        max_concurrency=given.max_concurrency,
        allow_private=given.allow_private,
        terms=health.Terms(
            base.circuit_failures if given.circuit_failures is None else given.circuit_failures,
            base.circuit_pause if given.circuit_pause is None else given.circuit_pause,
        ),
        rate=KINDS[given.kind].pace if given.rate is None else (given.rate.count, given.rate.per),
        coalesce=None if given.coalesce is None else (given.coalesce.count, given.coalesce.per),
        home=config.server.public_url,
    )


def own_callbacks(config: Config) -> deliver.Destination:
    """The lane that all tasks' own callback_urls share (contract section 3: 16 slots, 4 a host)."""
    base = config.delivery
    return deliver.Destination(
        name=OWN_CALLBACK,
        kind=KINDS["webhook"],
        # The URL is each delivery's own.
        options=WebhookOptions(
            url="http://callback.invalid", secrets=config.security.callback_secrets, format="envelope"
        ),
        schedule=base.schedule,
        jitter=base.jitter,
        timeout=base.timeout.total_seconds(),
        max_concurrency=16,
        allow_private=config.security.allow_private_callbacks,
        per_host=4,
    )


def rule(given: Any) -> Rule:
    """What one destination wants."""
    match = tuple((path, tuple(v) if isinstance(v, list | tuple) else (v,)) for path, v in given.match.items())
    return Rule(
        name=given.name,
        events=None if given.events is None else tuple(given.events),
        routes=None if given.routes is None else tuple(given.routes),
        match=match,
    )


def polling(config: Config) -> Polling:
    """When the upstream is asked."""
    given = config.polling
    return Polling(
        callback_grace=given.callback_grace,
        interval=given.interval,
        backoff=given.backoff,
        max_interval=given.max_interval,
        jitter=given.jitter,
        missing_grace=given.missing_grace,
        deadline=given.deadline,
    )


def terms(config: Config) -> Terms:
    """What submissions are made by."""
    upstream = config.upstream
    return Terms(
        signing_keys=config.security.signing_keys,
        callback_base=config.server.public_url,
        callback_ttl=config.security.callback_ttl,
        timeout=upstream.timeout.total_seconds(),
        max_concurrency=upstream.max_concurrency,
        retry=upstream.submit_retry,
        deadline=upstream.submit_deadline,
        allow_private_callbacks=config.security.allow_private_callbacks,
    )


def gates(config: Config, clock: Callable[[], datetime]) -> Gates:
    """Who may submit, and when."""
    given = config.upstream
    rate = None if given.rate is None else Rate("upstream", given.rate.count, given.rate.per)
    return Gates(clock, given.max_concurrency, given.submit_retry, rate)
