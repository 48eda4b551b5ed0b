"""The move from a stopped SQLite installation into an empty PostgreSQL database: copied, verified, whole or not at all.

Everything at the target, its schema included, is one transaction. Each row is counted and summed on its way in, by the
values our code would read, and counted and summed again as it comes out of the target; only then is it committed. The
sum does not depend on the order of rows, for the two engines do not sort alike. Rows go through one by one, so memory
is bounded by the largest of them.
"""

from __future__ import annotations

from contextlib import closing
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

import msgspec
import psycopg
from sqlalchemy import Boolean, LargeBinary, Table, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.sql.functions import count

from receiver.errors import Conflict, NotFound, StoreUnavailable, StoreUnsure
from receiver.store import migrations
from receiver.store.schema import metadata, writers
from receiver.store.unit import EVENT_SEQ

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from sqlalchemy import Connection

    from receiver.store.dialect import SQLite
    from receiver.store.dialect.postgres import Postgres

TABLES: Final = tuple(table for table in metadata.sorted_tables if table is not writers)
"""What is copied: all but the marks of processes that are gone."""
_LOCKED_FOR: Final = "10s"
_SUM: Final = 16
"""Bytes of a checksum."""


class Counted(NamedTuple):
    """A table's rows, as they went in and as they came out."""

    table: str
    rows: int
    checksum: str


class Copied(NamedTuple):
    """What was copied.

    Attributes:
        replaced: values that had a NUL character, which PostgreSQL cannot hold; U+FFFD stands there now.
        aside: the copy of the source that was made before its schema was brought up to date, if it was behind.
    """

    tables: list[Counted]
    replaced: int
    aside: Path | None


def copy(source: SQLite, target: Postgres) -> Copied:
    """Copy everything, and verify it.

    Raises:
        NotFound: there is no source.
        Conflict: it is served, the target is not empty, something does not fit into it, or the copy is not the same.
        StoreUnavailable: one of them cannot be opened, read or written. In all these cases the target is as it was.
        StoreUnsure: the target went away in the COMMIT.
    """
    if not source.exists():
        raise NotFound(f"there is no database {source.path}")
    try:
        lock = source.claim_for_serving()
    except StoreUnavailable as error:
        raise Conflict(str(error)) from error
    try:
        return _copy(source, target, migrations.upgrade(source.url))
    finally:
        lock.release()


def _copy(source: SQLite, target: Postgres, upgraded: migrations.Upgrade) -> Copied:
    if upgraded.schema.is_newer:
        raise Conflict(f"{source.path} {upgraded.schema.words}, but not copy it: run that release")
    engine = target.engine(writes=True)
    try:
        with engine.connect() as connection, closing(source.connect()) as reading:
            _prepare(connection, target)
            reading.execute("BEGIN")
            move = _Move(reading, _driver(connection))
            told_of = [move.table(table) for table in TABLES]
            connection.exec_driver_sql(f"ANALYZE {', '.join(table.name for table in TABLES)}")
            _commit(connection, target)
            return Copied(told_of, move.replaced, upgraded.copy)
    except SQLAlchemyError as error:
        origin = getattr(error, "orig", None)
        raise _failed(origin if isinstance(origin, psycopg.Error) else error, source, target) from error
    except (psycopg.Error, source.error) as error:
        raise _failed(error, source, target) from error
    finally:
        engine.dispose()


def _failed(error: Exception, source: SQLite, target: Postgres) -> Exception:
    if isinstance(error, psycopg.DataError | psycopg.IntegrityError):
        return Conflict(f"a row of {source.path} does not fit into {target.url}: {' '.join(str(error).split())}")
    if isinstance(error, psycopg.Error):
        return target.told(error, "cannot copy into")
    return StoreUnavailable(f"cannot copy {source.path} into {target.url}: {error}")


def _prepare(connection: Connection, target: Postgres) -> None:
    """A schema that is up to date, which nobody else touches and in which there is nothing.

    Raises:
        Conflict: something is there, or the schema is a newer release's.
    """
    driver = _driver(connection)
    for statement in target.first(driver):
        driver.execute(statement)
    target.hold(connection)
    driver.execute(f"SET LOCAL lock_timeout = '{_LOCKED_FOR}'")
    schema = migrations.bring(connection, target).schema
    if schema.is_newer:
        raise Conflict(f"{target.url} {schema.words}, but not copy into it: run that release")
    driver.execute(f"LOCK TABLE {', '.join(table.name for table in TABLES)} IN ACCESS EXCLUSIVE MODE")
    # A new schema has its counters too; they become what the source's are, unless there have been events.
    driver.execute("DELETE FROM counters WHERE NOT (name = %s AND value > 0)", [EVENT_SEQ])
    counts = {table.name: connection.scalar(select(count()).select_from(table)) for table in TABLES}
    there = [f"{name} ({rows})" for name, rows in counts.items() if rows]
    if there:
        refusal = Conflict(f"{target.url} is not empty, and nothing is written over: it has rows in {', '.join(there)}")
        refusal.add_note(
            "Name an empty database. What nobody needs is thrown away there by: DROP SCHEMA receiver CASCADE"
        )
        raise refusal


def _driver(connection: Connection) -> psycopg.Connection[Any]:
    driver: Any = connection.connection.driver_connection
    return cast("psycopg.Connection[Any]", driver)


def _commit(connection: Connection, target: Postgres) -> None:
    try:
        connection.commit()
    except SQLAlchemyError as error:
        raise StoreUnsure(
            f"{target.url} went away in the COMMIT, and whether the copy stands is unknown: run this again, "
            "and it is refused as not empty where it does"
        ) from error


class _Move:
    """Table after table, from a connection of sqlite3 to one of psycopg.

    Attributes:
        replaced: values so far that had a NUL character.
    """

    def __init__(self, source: Any, target: psycopg.Connection[Any]) -> None:
        self._source = source
        self._target = target
        self.replaced = 0

    def table(self, table: Table) -> Counted:
        """Copy one, and read it again.

        Raises:
            Conflict: what came out is not what went in.
        """
        names = ", ".join(column.name for column in table.columns)
        types = [_type(column.type) for column in table.columns]
        rows = self._source.execute(str(select(*table.columns)))
        with self._target.cursor().copy(f"COPY {table.name} ({names}) FROM STDIN (FORMAT BINARY)") as into:
            into.set_types(types)
            went_in = _count(table, self._sent(self._readable(table, rows), into.write_row))
        with self._target.cursor().copy(f"COPY {table.name} ({names}) TO STDOUT (FORMAT BINARY)") as out:
            out.set_types(types)
            came_out = _count(table, out.rows())
        if went_in != came_out:
            raise Conflict(
                f"the copy of {table.name} is not the same: {went_in.rows} rows with the checksum {went_in.checksum} "
                f"went in, {came_out.rows} with {came_out.checksum} are there; nothing was copied"
            )
        return went_in

    @staticmethod
    def _sent(rows: Iterable[Sequence[Any]], send: Callable[[Sequence[Any]], None]) -> Iterator[Sequence[Any]]:
        for row in rows:
            send(row)
            yield row

    def _readable(self, table: Table, rows: Iterable[Sequence[Any]]) -> Iterator[Sequence[Any]]:
        """Rows as the target can hold them, of the types that it gives back: SQLite has no booleans."""
        flags = [number for number, column in enumerate(table.columns) if isinstance(column.type, Boolean)]
        for row in rows:
            cells = list(row)
            for number in flags:
                cells[number] = None if cells[number] is None else bool(cells[number])
            for number, cell in enumerate(cells):
                if type(cell) is str and "\0" in cell:
                    cells[number] = cell.replace("\0", "\ufffd")
                    self.replaced += 1
            yield cells


def _type(kind: Any) -> str:
    """PostgreSQL's name of a column's type."""
    if isinstance(kind, LargeBinary):
        return "bytea"
    if isinstance(kind, Boolean):
        return "bool"
    return {"BIGINT": "int8", "INTEGER": "int4"}.get(str(kind), "text")


def _count(table: Table, rows: Iterable[Sequence[Any]]) -> Counted:
    number = total = 0
    encode = msgspec.msgpack.Encoder().encode  # distinct for text, bytes, numbers, booleans and nothing
    for row in rows:
        number += 1
        total += int.from_bytes(blake2b(encode(list(row)), digest_size=_SUM).digest(), "big")
    return Counted(table.name, number, (total % 2 ** (8 * _SUM)).to_bytes(_SUM, "big").hex())
