"""The older command: `python3 WorkerNode.py` is `python supervisor.py`."""

import sys

from supervisor import main

if __name__ == "__main__":
    sys.exit(main())
