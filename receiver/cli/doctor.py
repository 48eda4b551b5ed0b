"""`receiver doctor`: is all there that the service needs? It looks, says how to mend what is wrong, changes nothing.

Nothing here costs money, submits a task, sends an event or makes a file. This is the command and what it sees on this
machine; what it asks of others is `probing`.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from typing import TYPE_CHECKING, Final

import typer

from receiver.cli import output, probing
from receiver.cli.options import ConfigOption, JsonOption, load
from receiver.cli.probing import Finding
from receiver.errors import ReceiverError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from receiver.config import Config
    from receiver.store.dialect import Dialect
    from receiver.store.dialect.postgres import Postgres

ROOM: Final = 512 * 1024**2
"""Bytes that should be free on the disk of the database."""
_STYLES: Final = {"ok": "green", "note": "yellow", "wrong": "bold red"}


def doctor(*, json: JsonOption = False, config: ConfigOption = None) -> None:
    """Check the key, the database, the public URL, the clock and each destination; say how to mend what is wrong.

    1 where something is wrong. Nothing is submitted, sent or changed, and nothing costs money.

    Example:
      receiver doctor
      receiver doctor --config /etc/receiver/config.toml --json
    """
    settings = load(config)
    findings = [*_config(settings), *_database(settings), *asyncio.run(probing.probe(settings))]
    wrong = [finding for finding in findings if finding.state == "wrong"]
    if json:
        checks = [{"name": f.name, "state": f.state, "detail": f.detail, "mend": f.mend or None} for f in findings]
        output.document({"ok": not wrong, "checks": checks})
    else:
        for finding in findings:
            _tell(finding)
    if wrong:
        if not json:
            verb = "is" if len(wrong) == 1 else "are"
            output.hint(f"{len(wrong)} of {len(findings)} {verb} wrong: {', '.join(finding.name for finding in wrong)}")
        raise typer.Exit(output.FAILED)


def _tell(finding: Finding) -> None:
    output.say(output.styled(f"{finding.state:<6}", _STYLES[finding.state]), f"{finding.name}: {finding.detail}")
    if finding.mend:
        output.say(f"        {finding.mend}", style="dim" if finding.state == "note" else "")


# -- here ----------------------------------------------------------------------------------------------------------


def _config(settings: Config) -> Iterator[Finding]:
    """What keeps `serve` from starting, and what it would warn of."""
    from receiver import config

    flaws = config.servable(settings, os.environ)
    for flaw in flaws:
        key, _, words = flaw.partition(": ")
        yield Finding(key, "wrong", words.partition("; ")[0], words.partition("; ")[2])
    if not flaws:
        yield Finding("config", "ok", "no mistakes, and all that `receiver serve` needs")


def _database(settings: Config) -> Iterator[Finding]:
    from receiver.store.dialect import open_dialect

    try:
        dialect = open_dialect(settings.database.url)
    except ReceiverError as error:
        yield Finding("database", "wrong", str(error), "Install it, or change database.url.")
        return
    if dialect.is_shared:
        yield from _server(settings, dialect)
        return
    path = dialect.path
    folder = path.parent
    if not folder.is_dir():
        yield Finding("database", "wrong", f"there is no folder {folder}", f"Make it, or change database.url: {path}")
        return
    if not os.access(path if path.exists() else folder, os.W_OK):
        user = f"the user that runs this ({os.geteuid()})"
        yield Finding("database", "wrong", f"{path} cannot be written", f"Give it to {user}, or change database.url.")
        return
    yield _schema(settings, dialect)
    free = shutil.disk_usage(folder).free
    words = f"{_size(free)} free where the database is ({folder})"
    mend = "" if free >= ROOM else "Make room: callbacks are answered 503 once nothing can be committed."
    yield Finding("disk", "ok" if free >= ROOM else "wrong", words, mend)


def _server(settings: Config, dialect: Postgres) -> Iterator[Finding]:
    try:
        version, doubts = dialect.about()
    except ReceiverError as error:
        yield Finding("database", "wrong", str(error), " ".join(getattr(error, "__notes__", ())) or "Mend the server.")
        return
    yield _schema(settings, dialect)
    yield Finding("server", "note" if doubts else "ok", f"PostgreSQL {version}", "; ".join(doubts))


def _schema(settings: Config, dialect: Dialect) -> Finding:
    from receiver.store import migrations

    try:
        schema = migrations.look(settings.database.url)
    except ReceiverError as error:
        return Finding("database", "wrong", str(error), "Is it a database of this program? Else put back a backup.")
    words = f"{dialect.url} {schema.words}" if dialect.exists() else f"there is no {dialect.url} yet"
    if schema.fits:
        mend = "Newer instances may serve beside this one; replace it soon." if schema.is_newer else ""
        return Finding("database", "note" if schema.is_newer else "ok", words, mend)
    if schema.is_newer:
        return Finding("database", "wrong", words, "Run that newer release, or put back a backup of before.")
    if settings.database.migrate:
        return Finding("database", "note", words, "`receiver serve` sees to it.")
    return Finding("database", "wrong", words, "database.migrate is false, so run: receiver db upgrade")


def _size(count: int) -> str:
    return f"{count / 1024**3:.1f} GiB" if count >= 1024**3 else f"{count / 1024**2:.0f} MiB"
