"""The node. `python supervisor.py` reads the environment, starts the children and runs until it is told to stop.

Spawned children import this module again as their main: it imports nothing heavy before `main()` runs.
"""

from __future__ import annotations

import sys


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 0 after a drain or a good `--check`, 78 for what somebody has to change first."""
    from supervision.command import run

    return run(sys.argv[1:] if arguments is None else arguments)


if __name__ == "__main__":
    sys.exit(main())
