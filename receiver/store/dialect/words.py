"""What PostgreSQL's refusals mean to an operator, and how to mend them. The server's own words are kept behind ours.

libpq gives no code for what goes wrong while it connects, so those are known by their English words; what is said in
another language is passed on as it came. A URL that libpq cannot read is quoted in its errors, and is not passed on.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

import psycopg

from receiver.errors import StoreUnavailable


class _Refusal(NamedTuple):
    states: frozenset[str]
    pattern: str
    meaning: str
    mend: str


def _row(states: str, pattern: str, meaning: str, mend: str) -> _Refusal:
    return _Refusal(frozenset(states.split()), pattern, meaning, mend)


_KNOWN: Final = (
    _row(
        "28P01",
        "password authentication failed|no password supplied",
        "it refuses the password",
        "Check user and password in database.url (a URL without one leaves it to $PGPASSWORD or ~/.pgpass).",
    ),
    _row(
        "28000",
        "no pg_hba.conf entry|role .* does not exist|not permitted to log in|peer authentication failed",
        "it does not let this user in",
        "Check the user in database.url and the server's pg_hba.conf; some servers want ?sslmode=require.",
    ),
    _row(
        "3D000",
        "database .* does not exist",
        "there is no such database on that server",
        "Make it (`createdb`), or change database.url.",
    ),
    _row(
        "42501 3F000",  # a schema that may not be used is none
        "permission denied",
        "this user has no right to do that",
        "Its owner can let it: CREATE SCHEMA receiver AUTHORIZATION <the user of database.url>",
    ),
    _row(
        "25006",
        "read-only transaction",
        "it is read only: a standby, or default_transaction_read_only is on",
        "Name the primary, or all servers with ?target_session_attrs=read-write.",
    ),
    _row(
        "53300",
        "too many (clients|connections)|connection slots",
        "it has no connection left",
        "Raise its max_connections, or run fewer instances: each wants up to seven.",
    ),
    _row("57P01 57P02 57P03", "starting up|shutting down|in recovery mode", "it is starting or stopping", "Wait."),
    _row(
        "",
        "resolve host|translate host name",
        "no such host is known",
        "Check the host in database.url.",
    ),
    _row(
        "",
        "Connection refused|timeout|timed out|unreachable|No route to host|No such file or directory",
        "nothing answers there",
        "Is it running, and are host and port in database.url right?",
    ),
)


def told(error: Exception, url: str, what: str) -> StoreUnavailable:
    """The error to raise: `what` could not be done with the database at `url` (which must hold no secret).

    Its note, where there is one, is how to mend it.
    """
    raw, state = " ".join(str(error).split()), getattr(error, "sqlstate", None)
    if isinstance(error, psycopg.ProgrammingError) and state is None:
        found = StoreUnavailable(f"{what} the database: libpq cannot read its URL")
        found.add_note("Is there a parameter after the ? that libpq does not know, or a % that begins no code?")
        return found
    for known in _KNOWN:
        if state in known.states or (state is None and re.search(known.pattern, raw)):
            outside = f"{what} the database: {known.meaning}"
            found = StoreUnavailable(f"{what} the database {url}: {known.meaning} ({raw})", outside=outside)
            found.add_note(known.mend)
            return found
    return StoreUnavailable(f"{what} the database {url}: {raw}", outside=f"{what} the database; the log says why")
