#!/usr/bin/env bash
# Asks the gateway: ./ai.sh [stream] [PROMPT…], with PORT and MODEL_NAME where they are not the usual ones.
set -euo pipefail

case ${1:-} in -h | --help) sed -n '2s/^# //p' "$0" && exit 0 ;; esac
stream=false
if [ "${1:-}" = stream ]; then
  stream=true
  shift
fi
prompt=${*:-What is the capital of France? Answer in one sentence.}
base=http://${HOST:-127.0.0.1}:${PORT:-8081}/v1

fail() {
  printf 'ai.sh: %s\n' "$*" >&2
  exit 1
}

# The first model that the gateway lists.
first_model() { sed -n 's/.*"data":\[{"id":"\([^"]*\)".*/\1/p' <<<"$1"; }

if [ -z "${MODEL_NAME:-}" ]; then
  models=$(curl -sf "$base/models") || fail "nothing answers at $base: is ./start.sh running? Another port: PORT=…"
  MODEL_NAME=$(first_model "$models")
  [ -n "$MODEL_NAME" ] || fail "the gateway at $base lists no model yet: name one with MODEL_NAME=…"
fi

python() { if command -v python3 >/dev/null; then python3 "$@"; else "$(dirname "$0")/.venv/bin/python" "$@"; fi; }

# jo takes a leading @ or : for a file's name, and has no way to be told otherwise.
body() {
  if command -v jo >/dev/null && [[ $prompt != [@:%]* ]]; then
    jo model="$MODEL_NAME" stream=$stream "messages[]=$(jo role=user -- -s content="$prompt")"
  else
    python -c 'import json, sys; m, s, p = sys.argv[1:]
print(json.dumps({"model": m, "stream": s == "true", "messages": [{"role": "user", "content": p}]}))' "$MODEL_NAME" "$stream" "$prompt"
  fi
}

body | curl --verbose --no-buffer --fail-with-body "$base/chat/completions" -H 'Content-Type: application/json' --data-binary @-
echo
