"""Every check of this project, in the order in which they are quick to fail: lint, types, import contracts, tests.

The tests run in several processes: most of their time is waiting. What is about single rooms comes first and is
measured for coverage; journeys, commands and kills come after, unmeasured: measuring makes them half as long again.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
PURE = (
    "receiver/envelope.py",
    "receiver/health.py",
    "receiver/ids.py",
    "receiver/lifecycle.py",
    "receiver/metrics.py",
    "receiver/pace.py",
    "receiver/records.py",
    "receiver/retry.py",
    "receiver/routing.py",
    "receiver/signing.py",
    "receiver/wire.py",
    "receiver/errors.py",
    "receiver/ingest/judge.py",
    "receiver/config/lines.py",
    "receiver/config/values.py",
    "receiver/upstream/*",
    "receiver/destinations/*",
)
"""Rooms whose every branch is covered."""

JOURNEYS = (
    "test_database_away.py",
    "test_instances*.py",
    "test_database_commit.py",
    "test_database_gone.py",
    "test_cli_service.py",
    "test_journeys_sdk.py",
    "test_cli*.py",
    "test_instances*.py",
    "test_database_*.py",
    "test_kill.py",
    "test_queue*.py",
    "test_replay.py",
    "test_journeys_*.py",
    "test_openapi.py",
    "test_demo.py",
    "test_fault*.py",
    "test_model.py",
    "test_copying.py",
    "test_migrations_*.py",
    "test_speed.py",
    "test_hostile_urls.py",
    "test_rotation.py",
    "test_egress.py",
    "test_deliver_hostile.py",
    "test_api*.py",
    "test_door.py",
    "test_client*.py",
    "test_emulator*.py",
)
"""Test files that no pure room's coverage rests on; what takes long comes first, so that nobody waits for it alone."""

ACROSS = ["pytest", "--numprocesses=3", "--dist=loadfile", "--no-loadscope-reorder", "--durations=15"]
"""A file stays in one process: its tests share a service."""


def journeys() -> list[str]:
    """The files of `JOURNEYS`, in that order."""
    found = [path for pattern in JOURNEYS for path in sorted((ROOT / "tests").glob(pattern))]
    return [str(path.relative_to(ROOT)) for path in dict.fromkeys(found)]


def checks() -> list[tuple[str, list[str]]]:
    """Every check: its name, and its command."""
    others = [f"--ignore-glob=tests/{pattern}" for pattern in JOURNEYS]
    pure = f"--include={','.join(PURE)}"
    return [
        ("lint", ["ruff", "check", "."]),
        ("format", ["ruff", "format", "--check", "."]),
        ("types", ["mypy"]),
        ("import contracts", ["lint-imports", "--no-cache", "--no-logo"]),
        ("tests of the rooms", [*ACROSS, *others, "--cov=receiver", "--cov-branch", "--cov-report="]),
        ("coverage of the pure rooms", ["coverage", "report", pure, "--fail-under=100", "-m", "--skip-covered"]),
        ("journeys", [*ACROSS, *journeys()]),
    ]


def main() -> int:
    """Run them; stop at the first that fails."""
    # Tests start many processes: each would compile what it imports, where nobody keeps what was compiled.
    compiled = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(ROOT / ".pytest_cache" / "pycache")}
    for name, command in checks():
        sys.stdout.write(f"== {name}: {' '.join(command)}\n")
        sys.stdout.flush()
        if subprocess.run(command, check=False, cwd=ROOT, env=os.environ | compiled).returncode:
            sys.stderr.write(f"{name} failed\n")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
