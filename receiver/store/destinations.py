"""Questions about the health of destinations and about replays."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import bindparam, literal_column, select

from receiver.records import Health, Replay
from receiver.store.rows import Prepared, Rows
from receiver.store.schema import destinations, replays

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from receiver.ids import ReplayId
    from receiver.store.dialect import Dialect

COLUMNS = [destinations.c[name] for name in Health.__struct_fields__]
REPLAY_COLUMNS = [replays.c[name] for name in Replay.__struct_fields__]


class HealthQuestions:
    """Statements about health."""

    def __init__(self, dialect: Dialect) -> None:
        """Compile them."""
        self.rows = Rows(Health, destinations, dialect.core)

    def all(self, connection: Connection) -> dict[str, Health]:
        """The health of those that ever failed or were paused."""
        found = self.rows.decode(connection.execute(select(*COLUMNS)))
        return {health.name: health for health in found}


class ReplayQuestions:
    """Statements about replays."""

    def __init__(self, dialect: Dialect) -> None:
        """Compile them."""
        self.rows = Rows(Replay, replays, dialect.core)
        running = replays.c.state == literal_column("'running'")
        self.running = Prepared(
            select(replays.c.id).where(running).order_by(replays.c.id).limit(bindparam("limit")), dialect.core
        )

    def get(self, connection: Connection, replay_id: ReplayId) -> Replay | None:
        """One replay."""
        found = self.rows.decode(connection.execute(select(*REPLAY_COLUMNS).where(replays.c.id == replay_id)))
        return found[0] if found else None

    def page(self, connection: Connection, *, before: ReplayId | None = None, limit: int) -> list[Replay]:
        """Replays, newest first, from the one after `before`."""
        question = select(*REPLAY_COLUMNS).order_by(replays.c.id.desc()).limit(limit)
        if before is not None:
            question = question.where(replays.c.id < before)
        return self.rows.decode(connection.execute(question))
