"""What an apprise URL `json://` leads to: the JSON that apprise posts there (its wiki, Notify_Custom_JSON)."""

from __future__ import annotations

from typing import Any

from tests.platforms import Asked, Checks, Platform, Refused, Said, Shown, document

SECRET = "apprise-secret-in-the-path"


class AppriseTarget(Platform):
    """A server that apprise posts to; apprise itself tells us no more than whether it was taken."""

    kind = "apprise"
    path = f"/{SECRET}"

    def keys(self) -> dict[str, Any]:
        """An apprise URL."""
        return {"url": f"json{self.base.removeprefix('http')}{self.path}"}

    def throttled(self, wait: float) -> Said:
        """429; apprise loses what it names."""
        return Said(429, b"", {"retry-after": f"{wait:g}"})

    def take(self, asked: Asked) -> tuple[Said, Shown]:
        """Apprise's own shape."""
        if asked.path != self.path:
            raise Refused(Said(404, b""), "no such path")
        check = Checks(lambda _why: Said(400, b""))
        given = check.members(document(asked, Said(400, b"")), "attachments", "version title message type")
        check.one_of(given["type"], "info", "success", "failure", "warning", where="type")
        texts = [check.text(given[name], 100_000, where=name) for name in ("title", "message")]
        return Said(200, b""), Shown("\n".join(texts))
