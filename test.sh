#!/usr/bin/env bash
# Everything that must hold: lint, types, then all tests. Installs what they need, into .venv, the first time.
#   ./test.sh                   all of it
#   ./test.sh -k name …         only pytest, with these arguments
# The acceptance tests start a real Apache Pulsar (Java 17; fetched once with Maven, 244 MB, into ~/.cache/workernode).
# Without Java they are skipped, unless CI=true. The pages are tested in chromium (Debian: apt install chromium), likewise.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

scripts/venv requirement.txt requirement-dev.txt requirement-local.txt
./local.sh
python=.venv/bin/python

if [ $# -gt 0 ]; then
  exec "$python" -m pytest -q --durations=15 "$@"
fi
"$python" -m ruff check .
"$python" -m mypy
# Two at once, as much of a test's time is waiting; tests/conftest.py says which must not run beside each other.
exec "$python" -m pytest -q --durations=15 --numprocesses=2 --no-loadscope-reorder
