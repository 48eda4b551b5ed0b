"""Between records and rows: statements compiled once from Core, parameters as tuples for the driver's executemany.

Core's own executemany costs twice the driver's (performance.md), so Core writes the SQL and the driver runs it.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import compress
from operator import attrgetter, is_not, pos
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import msgspec
from sqlalchemy import BigInteger, Boolean, Table, bindparam

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from sqlalchemy import ClauseElement
    from sqlalchemy.engine.interfaces import Dialect as CoreDialect

R = TypeVar("R", bound=msgspec.Struct)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MS = timedelta(milliseconds=1)
SKIP: dict[str, Any] = {"skip_locked": True}
"""How a claim locks its rows: what another instance has locked is passed over. SQLite, which has one writer, needs none
of it and its statements bear none."""
_FEW = 3
_WRITTEN = {"None": None, "False": "false", "0": "0", "''": "''"}
"""How the tables (schema.py) write what a column holds by itself."""
_EXACT_BELOW = 2**33 * 1000
"""Milliseconds (the year 2242) up to which a double of seconds names its microsecond."""


def to_ms(at: datetime) -> int:
    """Unix milliseconds of an aware time."""
    return (at - _EPOCH) // _MS


def from_ms(ms: int) -> datetime:
    """The aware time of Unix milliseconds."""
    return _EPOCH + timedelta(milliseconds=ms)


class Prepared:
    """A statement's SQL for one engine, and the order of its parameters."""

    __slots__ = ("_fixed", "order", "sql")

    def __init__(self, statement: ClauseElement, core: CoreDialect) -> None:
        """Compile `statement` once."""
        compiled = statement.compile(dialect=core)
        self.sql = str(compiled)
        self.order: tuple[str, ...] = tuple(getattr(compiled, "positiontup", None) or ())
        self._fixed = {k: v for k, v in compiled.params.items() if v is not None}

    def values(self, **named: Any) -> tuple[Any, ...]:
        """The parameters as a tuple; those the statement holds itself (constants) come from it."""
        return tuple([_cell(named[name]) if name in named else self._fixed[name] for name in self.order])


class Write(NamedTuple):
    """An INSERT or UPDATE of some columns, and how records become its parameters."""

    sql: str
    encode: Callable[[Iterable[Any]], list[Sequence[Any]]]


def _cell(value: Any) -> Any:
    return to_ms(value) if isinstance(value, datetime) else value


class Rows(Generic[R]):
    """One table's rows as records of one struct.

    Attributes:
        columns: to select; `decode` makes records of rows of them.
        key: the field by which a record is known: the first of the primary key.
    """

    def __init__(self, struct: type[R], table: Table, core: CoreDialect) -> None:
        """Prepare the statements of `table`, whose columns must be the fields of `struct`."""
        self._table, self._core = table, core
        self._fields = struct.__struct_fields__
        self._keys = tuple(column.name for column in table.primary_key)
        self.key = self._keys[0]
        self.columns = [table.c[name] for name in self._fields]
        self.decode = _decoder(struct, self.columns)
        absent = [_absent(field, table.c[field.name]) for field in msgspec.structs.fields(struct)]
        # To look for two or three takes longer than to write them.
        self._absent = absent if len(absent) - absent.count(msgspec.NODEFAULT) > _FEW else []
        self._inserts: dict[tuple[str, ...], Write] = {}
        self._updates: dict[tuple[str, ...], Write] = {}

    def insert(self, record: R) -> Write:
        """The statement that makes a new row, and leaves out each column that the table itself fills the same way.

        To hand over a cell and write it costs as much as a field in Python; half a new delivery is what it always is.
        """
        told = self._fields
        if self._absent:
            told = tuple(compress(told, map(is_not, msgspec.structs.astuple(record), self._absent)))
        if (found := self._inserts.get(told)) is None:
            found = self._inserts[told] = self._inserting(told)
        return found

    def update(self, before: R, after: R) -> Write:
        """The statement that writes what has changed of a row, and no other column.

        An engine takes a row out of an index and puts it back for every index whose column is named, changed or not;
        there are few different sets of changes, so each is compiled once.
        """
        old, new = msgspec.structs.astuple(before), msgspec.structs.astuple(after)
        # A key never changes: a row whose object is new and equal in all is written as it is.
        changed = tuple(compress(self._fields, map(is_not, old, new))) or self._keys
        if (found := self._updates.get(changed)) is None:
            found = self._updates[changed] = self._updating(changed)
        return found

    def _inserting(self, told: Sequence[str]) -> Write:
        return self._compile(self._table.insert().values({name: bindparam(f"{name}_") for name in told}))

    def _updating(self, changed: Sequence[str]) -> Write:
        update = self._table.update().values({name: bindparam(f"{name}_") for name in changed})
        for key in self._keys:
            update = update.where(self._table.c[key] == bindparam(f"{key}_"))
        return self._compile(update)

    def _compile(self, statement: ClauseElement) -> Write:
        prepared = Prepared(statement, self._core)
        order = [name.removesuffix("_") for name in prepared.order]
        return Write(prepared.sql, _encoder(order, self._table, self._core))


def _is_time(column: Any) -> bool:
    return isinstance(column.type, BigInteger) and (column.name == "at" or column.name.endswith(("_at", "_until")))


def _is_flag(column: Any) -> bool:
    return isinstance(column.type, Boolean)


def _absent(field: msgspec.structs.FieldInfo, column: Any) -> Any:
    """What a field holds where its column may be left out of an INSERT; never found where it may not."""
    by_itself = None if column.server_default is None else str(column.server_default.arg)
    return field.default if _WRITTEN.get(repr(field.default), "") == by_itself else msgspec.NODEFAULT


def _decoder(struct: type[R], columns: Sequence[Any]) -> Callable[[Iterable[Sequence[Any]]], list[R]]:
    """The records of rows selected as `columns`."""
    times = [i for i, column in enumerate(columns) if _is_time(column)]
    flags = [i for i, column in enumerate(columns) if _is_flag(column)]

    def decode(rows: Iterable[Sequence[Any]]) -> list[R]:
        # Column by column: most times of most tasks are NULL, and that is seen at once for all of them.
        cells: list[Any] = list(zip(*rows, strict=True))
        if not cells:
            return []
        for i in times:
            if not _is_empty(column := cells[i]):
                cells[i] = [None if ms is None else _time(ms) for ms in column]
        for i in flags:
            cells[i] = map(bool, cells[i])
        return list(map(struct, *cells))

    return decode


def _time(ms: int) -> datetime:
    """As `from_ms`, in 0.2 us instead of 0.35 where a double is exact enough."""
    return datetime.fromtimestamp(ms / 1000, UTC) if ms < _EXACT_BELOW else from_ms(ms)


def _is_empty(column: Sequence[Any]) -> bool:
    return column.count(None) == len(column)


def _encoder(order: Sequence[str], table: Table, core: CoreDialect) -> Callable[[Iterable[Any]], list[Sequence[Any]]]:
    get = attrgetter(*order)
    times = [i for i, name in enumerate(order) if _is_time(table.c[name])]
    # SQLite's driver would look for an adapter of each, see dialect/sqlite.py
    flags = [] if core.supports_native_boolean else [i for i, name in enumerate(order) if _is_flag(table.c[name])]

    def encode(records: Iterable[Any]) -> list[Sequence[Any]]:
        cells: list[Any] = list(zip(*map(get, records), strict=True))
        for i in times:
            if not _is_empty(column := cells[i]):
                cells[i] = [None if at is None else (at - _EPOCH) // _MS for at in column]
        for i in flags:
            cells[i] = map(pos, cells[i])
        return list(zip(*cells, strict=True))

    return encode
