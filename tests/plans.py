"""How an engine would go about a statement: what it walks through from end to end, and whether it sorts.

PostgreSQL is asked for the plan that fits all values, with full walks and sorts at a price beyond any other way: what
is left of them cannot be done by an index. A walk of a partial index from end to end is a walk, too, on both.
"""

from __future__ import annotations

import re
from contextlib import closing
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any

from psycopg.sql import Literal

from receiver.store.dialect import open_dialect

if TYPE_CHECKING:
    from collections.abc import Iterator

_DEAR = ("enable_seqscan", "enable_bitmapscan", "enable_sort", "enable_material")


@dataclass(frozen=True)
class Plan:
    """What was said of one statement.

    Attributes:
        walks: tables that are walked through from end to end, each with the index by which, or "".
        sorts: the order comes from no index.
    """

    walks: frozenset[tuple[str, str]]
    sorts: bool


def plan(url: str, sql: str) -> Plan:
    """How the engine behind this URL would do it, whatever the values."""
    dialect = open_dialect(url)
    connection: Any = dialect.connect()
    with closing(connection):
        return _postgresql(connection, sql) if dialect.is_shared else _sqlite(connection, sql)


def _sqlite(connection: Any, sql: str) -> Plan:
    steps = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}", [None] * sql.count("?"))]
    # The ids of one parameter are a virtual table, and read in whole.
    scans = [step for step in steps if step.startswith("SCAN") and "VIRTUAL TABLE" not in step]
    walks = [(step.split()[1], step.rpartition(" INDEX ")[2] if " INDEX " in step else "") for step in scans]
    return Plan(frozenset(walks), any("TEMP B-TREE" in step for step in steps))


def _postgresql(connection: Any, sql: str) -> Plan:
    numbered, many = _numbered(sql)
    values = ", ".join(["NULL"] * many)
    for setting in _DEAR:
        connection.execute(f"SET {setting} = off")
    connection.execute("SET plan_cache_mode = force_generic_plan")
    connection.execute(f"PREPARE statement AS {numbered}")
    [[[found]]] = connection.execute(f"EXPLAIN (FORMAT JSON) EXECUTE statement{f'({values})' if values else ''}")
    nodes = list(_nodes(found["Plan"]))
    walks = [
        (node["Relation Name"], node.get("Index Name", ""))
        for node in nodes
        if node["Node Type"] in {"Seq Scan", "Index Scan", "Index Only Scan"} and "Index Cond" not in node
    ]
    return Plan(frozenset(walks), any("Sort" in node["Node Type"] for node in nodes))


def walked(url: str, sql: str, values: tuple[Any, ...], mode: str) -> set[str]:
    """Tables that PostgreSQL of its own will reads in whole, knowing what is in them; `mode`: its `plan_cache_mode`."""
    session: Any = open_dialect(url).connect()
    with closing(session):
        session.execute(f"SET plan_cache_mode = {mode}")
        session.execute(f"PREPARE statement AS {_numbered(sql)[0]}")
        given = ", ".join(Literal(value).as_string(session.connection) for value in values)
        [[[found]]] = session.execute(f"EXPLAIN (FORMAT JSON) EXECUTE statement({given})")
    return {node["Relation Name"] for node in _nodes(found["Plan"]) if node["Node Type"] == "Seq Scan"}


def _numbered(sql: str) -> tuple[str, int]:
    """The statement as PREPARE takes it, and how many values it has."""
    numbers = count(1)
    numbered = re.sub("%s", lambda _found: f"${next(numbers)}", sql).replace("%%", "%")
    return numbered, next(numbers) - 1


def _nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for below in node.get("Plans", ()):
        yield from _nodes(below)
