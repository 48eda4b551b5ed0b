"""A PostgreSQL server of its own for a test that stops it, kills it and starts it again as it likes."""

from __future__ import annotations

import signal
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import psycopg

from tests import databases, postgres

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_HOW = {"fast": signal.SIGINT, "immediate": signal.SIGQUIT}


@dataclass
class Server:
    """The server."""

    process: postgres.Server

    def start(self) -> None:
        """Start it; it answers."""
        self.process.start()

    def stop(self, how: Literal["fast", "immediate"]) -> None:
        """Stop it, in order or as a crash does."""
        self.process.stop(_HOW[how])

    def terminate(self) -> int:
        """Hang up on every client, as an operator does; how many."""
        others = "pid != pg_backend_pid() and backend_type = 'client backend'"
        question = f"select count(pg_terminate_backend(pid)) from pg_stat_activity where {others}"
        return int(self.ask(question, database="postgres")[0][0])

    def ask(self, question: str, values: Sequence[Any] = (), *, database: str) -> list[Any]:
        """One statement on a connection of its own; its rows."""
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            connection.execute("set search_path to receiver, public")
            found = connection.execute(question.encode(), values or None)
            return found.fetchall() if found.description else []

    def database(self, name: str) -> str:
        """Make an empty database; its URL."""
        self.process.run("create database {name}", name=name)
        return self.url(name)

    def url(self, database: str) -> str:
        """Of one of its databases."""
        return self.process.url(database)


@contextmanager
def server() -> Iterator[Server]:
    """A server that is there."""
    databases.need()
    made = postgres.launch()
    try:
        yield Server(made)
    finally:
        made.remove()
