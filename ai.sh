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
host=${HOST:-127.0.0.1}
case $host in 0.0.0.0) host=127.0.0.1 ;; *:*) host="[$host]" ;; esac
base=http://$host:${PORT:-8081}/v1

fail() {
  printf 'ai.sh: %s\n' "$*" >&2
  exit 1
}

# No proxy of the environment stands between this machine and itself.
ask() { curl --noproxy '*' --connect-timeout 10 "$@"; }

# The first model that the gateway lists.
first_model() { sed -n 's/.*"data":\[{"id":"\([^"]*\)".*/\1/p' <<<"$1"; }

# jo has no way to be told that a value is no file's name (@ : %), nor that null is a text; 1.9 leaves U+001F as it is.
suits_jo() { case $1 in [@:%]* | null | *[[:cntrl:]]*) return 1 ;; esac; }

json_string() {
  local text=$1 code character escaped
  text=${text//\\/\\\\}
  text=${text//\"/\\\"}
  for code in {1..31}; do
    printf -v escaped '\\u%04x' "$code"
    printf -v character '%b' "\\0$(printf %o "$code")"
    text=${text//"$character"/$escaped}
  done
  printf '"%s"' "$text"
}

body() {
  if command -v jo >/dev/null && suits_jo "$MODEL_NAME" && suits_jo "$prompt"; then
    jo -- -s model="$MODEL_NAME" -b stream="$stream" "messages[]=$(jo -- -s role=user -s content="$prompt")"
  else
    printf '{"model":%s,"stream":%s,"messages":[{"role":"user","content":%s}]}' \
      "$(json_string "$MODEL_NAME")" "$stream" "$(json_string "$prompt")"
  fi
}

command -v curl >/dev/null || fail "curl is needed (Debian, Ubuntu: apt install curl)"
if [ -z "${MODEL_NAME:-}" ]; then
  models=$(ask -sf "$base/models") || fail "nothing answers at $base: is ./start.sh running? Another port: PORT=…"
  MODEL_NAME=$(first_model "$models")
  [ -n "$MODEL_NAME" ] || fail "the gateway at $base lists no model yet: name one with MODEL_NAME=…"
fi
status=0
body | ask --verbose --no-buffer --fail-with-body "$base/chat/completions" -H 'Content-Type: application/json' --data-binary @- || status=$?
echo
[ "$status" -ne 7 ] || fail "nothing answers at $base: is ./start.sh running? Another port: PORT=…"
exit "$status"
