#!/usr/bin/env bash
# Sets up and runs everything: the queue, a node with its model, and the gateway in front of them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

usage() {
  cat <<EOF
Usage: ./start.sh [demo|local|remote] [--docker]

  local    a model on this machine: SmolLM2, or MODEL_PATH, or MODEL_COMMAND    (the default)
  remote   an API: API_URL, API_KEY, MODEL_NAME                                 (the default where these are set)
  demo     a fixed answer

The queue: PULSAR_URL where it is set; else the Pulsar in PULSAR_HOME or ./apache-pulsar-*, started here; else the
embedded broker. PORT is the gateway's, 8081. --docker runs the node as a container. ./supervisor.py --help lists all.
EOF
}

say() { printf '%s\n' "$*"; }
fail() {
  printf 'start.sh: %s\n' "$*" >&2
  exit 1
}

mode='' docker='' node='' pulsar='' container='' work=''
for argument in "$@"; do
  case $argument in
    demo | local | remote) mode=$argument ;;
    --docker) docker=yes ;;
    -h | --help) usage && exit 0 ;;
    *) usage >&2 && exit 64 ;;
  esac
done

# Whatever this script started is ended again, however it ends; last started, first ended.
clean_up() {
  local status=$?
  trap - EXIT
  trap '' INT TERM
  if [ -n "$node" ] && kill -0 "$node" 2>/dev/null; then
    kill -TERM "$node" 2>/dev/null || true
    wait "$node" 2>/dev/null || true
  fi
  [ -z "$container" ] || docker rm --force "$container" >/dev/null 2>&1 || true
  stop_pulsar
  [ -z "$work" ] || rm -rf -- "$work"
  exit "$status"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

choose_mode() {
  if [ -z "$mode" ]; then
    mode=local
    [ -z "${API_URL:-}" ] || [ -z "${API_KEY:-}${API_KEY_FILE:-}" ] || mode=remote
  fi
  export NODE_TYPE=$mode PORT=${PORT:-8081}
  case $mode in
    demo) export MODEL_NAME=${MODEL_NAME:-static} ;;
    local) export MODEL_NAME=${MODEL_NAME:-smollm2} ;;
    remote) [ -n "${MODEL_NAME:-}" ] || fail "remote needs MODEL_NAME: the API's name of the model, like gpt-4o-mini" ;;
  esac
}

install() {
  scripts/venv requirement.txt
  if [ "$mode" = local ] && [ -z "${MODEL_COMMAND:-}" ]; then
    if [ -n "${MODEL_PATH:-}" ]; then ./local.sh "$MODEL_PATH"; else ./local.sh; fi
  fi
}

find_pulsar() {
  local found
  if [ -n "${PULSAR_HOME:-}" ]; then
    [ -x "$PULSAR_HOME/bin/pulsar" ] || fail "there is no bin/pulsar in PULSAR_HOME=$PULSAR_HOME"
    printf '%s' "$PULSAR_HOME"
    return
  fi
  for found in ./apache-pulsar-*/; do
    [ ! -x "$found/bin/pulsar" ] || printf '%s' "${found%/}"
    return
  done
}

is_free() { ! (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

start_pulsar() {
  local home=$1 waited=0
  [[ $home != *" "* ]] || fail "Pulsar's own script bears no blank in its path, $home"
  command -v java >/dev/null || fail "the Pulsar in $home needs Java (Debian, Ubuntu: apt install openjdk-17-jre-headless)"
  is_free 6650 && is_free 8080 || fail "port 6650 or 8080 is taken: set PULSAR_URL to use the Pulsar that runs there"
  say "Starting Pulsar from $home (its log: $work/pulsar.log); this takes up to a minute"
  PULSAR_MEM=${PULSAR_MEM:-"-Xms256m -Xmx768m -XX:MaxDirectMemorySize=768m"} PULSAR_LOG_DIR=$work/pulsar-logs \
    setsid "$home/bin/pulsar" standalone -nfw -nss >"$work/pulsar.log" 2>&1 </dev/null &
  pulsar=$!
  until curl -sf http://127.0.0.1:8080/admin/v2/namespaces/public 2>/dev/null | grep -q public/default; do
    kill -0 "$pulsar" 2>/dev/null || { tail -n 20 "$work/pulsar.log" >&2 && fail "Pulsar ended while it started; its last lines are above"; }
    [ $((waited += 1)) -lt 240 ] || { tail -n 20 "$work/pulsar.log" >&2 && fail "Pulsar is not ready after 2 minutes; its last lines are above"; }
    sleep 0.5
  done
  export PULSAR_URL=pulsar://127.0.0.1:6650 PULSAR_ADMIN_URL=http://127.0.0.1:8080
}

# Its own process group: the script in bin/pulsar starts Java as a child.
stop_pulsar() {
  [ -n "$pulsar" ] || return 0
  kill -TERM -- "-$pulsar" 2>/dev/null || return 0
  for _ in $(seq 60); do
    kill -0 -- "-$pulsar" 2>/dev/null || return 0
    sleep 0.25
  done
  kill -KILL -- "-$pulsar" 2>/dev/null || true
}

# In a session of its own, as Ctrl-C would reach it too and, with the signal sent by clean_up, count as a second one.
start_node() {
  if [ -n "$docker" ]; then
    command -v docker >/dev/null || fail "--docker needs Docker, and there is none"
    docker build -t workernode .
    container=workernode-$$
    setsid docker run --rm --name "$container" --network host --env-file <(container_environment) workernode &
  else
    setsid .venv/bin/python supervisor.py &
  fi
  node=$!
}

# By file, so that no key stands in an argument list.
container_environment() { env | grep -E '^(NODE_TYPE|MODEL_NAME|UPSTREAM_MODEL|API_|PULSAR_|MAX_PROCESS_NUM|RES_TOPIC_NAME|DEBUG|PORT|HOST|TIMEOUT)' || true; }

await_node() {
  local waited=0 health="http://127.0.0.1:$PORT/health"
  until curl -sf "$health" >/dev/null 2>&1; do
    kill -0 "$node" 2>/dev/null || { wait "$node" || fail "the node did not start (exit code $?); its last lines above say why"; }
    [ $((waited += 1)) -lt 2400 ] || fail "no answer at $health after 10 minutes; the log above says how far it came"
    sleep 0.25
  done
}

choose_mode
command -v curl >/dev/null || fail "curl is needed (Debian, Ubuntu: apt install curl)"
is_free "$PORT" || fail "port $PORT is taken: end what listens there, or choose another with PORT=…"
install
work=$(mktemp -d)
if [ -z "${PULSAR_URL:-}" ]; then
  home=$(find_pulsar)
  [ -z "$home" ] || start_pulsar "$home"
fi
start_node
await_node
say ""
say "WorkerNode serves the model $MODEL_NAME ($mode) at http://127.0.0.1:$PORT/v1"
say "Next, in another terminal: ./ai.sh   or   ./ai.sh stream"
say "Ctrl-C ends everything that was started here."
status=0
wait "$node" || status=$?
exit "$status"
