"""The entry point: `receiver`, also `python -m receiver`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line and end with its code; Ctrl-C ends quietly with 130, also while things are still loaded."""
    try:
        from receiver.cli import run

        code = run()
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)


if __name__ == "__main__":
    main()
