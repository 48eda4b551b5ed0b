"""`receiver db …`: the schema brought up to date or looked at, and the move to PostgreSQL. No password is printed."""

from __future__ import annotations

from typing import Annotated

import typer

from receiver.cli import output
from receiver.cli.options import ConfigOption, JsonOption, load

_WANTED = "a URL of PostgreSQL is wanted: postgresql://user@host/db"

app = typer.Typer(no_args_is_help=True, help="Bring the database up to date, see whether it is, or move it.")


@app.command()
def upgrade(*, json: JsonOption = False, config: ConfigOption = None) -> None:
    """Bring the database's schema up to date; a new one is made. `serve` does so by itself.

    An SQLite file that has a schema is copied first, to one beside it.

    Example:
      receiver db upgrade
    """
    from receiver.store import migrations
    from receiver.store.dialect import open_dialect

    url = load(config).database.url
    done = migrations.upgrade(url)
    schema, place = done.schema, open_dialect(url).url
    if json:
        output.document({"from": done.before, "to": schema.at, "copy": done.copy and str(done.copy)})
        return
    if done.copy:
        output.say(f"Copied to {done.copy} before")
    if schema.is_newer:
        output.say(f"{place} {schema.words}; nothing was changed")
    elif done.before == schema.at:
        output.say(f"{place} is up to date already: schema {schema.at}")
    else:
        was = f", before {done.before}" if done.before else ", made new"
        output.say(f"{place} is up to date now: schema {schema.at}{was}")


@app.command()
def check(*, json: JsonOption = False, config: ConfigOption = None) -> None:
    """Say whether the database's schema is up to date; 1 where this release cannot serve it as it is.

    Example:
      receiver db check
    """
    from receiver.store import migrations
    from receiver.store.dialect import open_dialect

    url = load(config).database.url
    schema, place = migrations.look(url), open_dialect(url).url
    if json:
        up_to_date = schema.at == schema.head
        output.document({"schema": schema.at, "newest": schema.head, "up_to_date": up_to_date, "fits": schema.fits})
    if not schema.fits:
        mend = "run that release" if schema.is_newer else "run `receiver db upgrade`"
        raise output.Failed(f"{place} {schema.words}: {mend}")
    if not json:
        output.say(f"{place} {schema.words}")


@app.command()
def copy(
    *,
    to: Annotated[str, typer.Option(help="The empty PostgreSQL database: postgresql://user@host/db", metavar="URL")],
    json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Copy a stopped SQLite installation into an empty PostgreSQL database, and verify the copy. Whole or not at all.

    1 where it was not copied; the target is then as it was. Leave the password out of the URL where others can see
    this machine's processes: $PGPASSWORD and ~/.pgpass are read.

    Example:
      receiver db copy --to postgresql://receiver@db.example.com/receiver
    """
    from receiver.config import database_url
    from receiver.store.dialect import SQLite, open_dialect

    try:
        target = open_dialect(database_url(to))
    except ValueError as error:
        words = str(error) if to.startswith(("postgres:", "postgresql:")) else _WANTED
        raise typer.BadParameter(words, param_hint="--to") from None
    source = open_dialect(load(config).database.url)
    if not isinstance(source, SQLite):
        raise output.Failed(f"database.url is PostgreSQL already ({source.url}); an SQLite file can be copied")
    if isinstance(target, SQLite):
        raise typer.BadParameter(_WANTED, param_hint="--to")
    from receiver.store import copying  # it wants the driver, which is there now

    told = copying.copy(source, target)
    if json:
        tables = {one.table: {"rows": one.rows, "checksum": one.checksum} for one in told.tables}
        document = {"from": source.url, "to": target.url, "tables": tables, "replaced_nul": told.replaced}
        output.document(document | {"copy": told.aside and str(told.aside)})
        return
    shown = output.table("TABLE", "ROWS", "CHECKSUM, THE SAME ON BOTH SIDES")
    for one in told.tables:
        shown.add_row(one.table, str(one.rows), one.checksum)
    output.out().print(shown)
    output.say(f"Copied and verified: {source.url} is in {target.url} now. What is left to do:")
    output.say("  1. Set database.url to where it is now. What came in meanwhile is found by polling.")
    output.say("  2. receiver serve; then receiver doctor says whether all is well.")
    output.say(f"  3. Never serve {source.path} again: it would go on with the same tasks. Keep it as a backup.")
    if told.replaced:
        output.hint(f"{told.replaced} values had NUL characters, which PostgreSQL cannot hold: each is U+FFFD there.")
