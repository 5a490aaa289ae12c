#!/usr/bin/env bash
# shellcheck disable=SC2317,SC2009 # functions called by a trap or by their names; pgrep tells no zombies
# Sets up and runs everything: the queue, a node with its model, and the gateway in front of them.
# What it starts runs in process groups of their own: Ctrl-C reaches this script alone, which then ends them in their order.
set -euo pipefail
from=$PWD # a relative path in the environment is the caller's
cd "$(dirname "${BASH_SOURCE[0]}")"

usage() {
  cat <<END
Usage: ./start.sh [demo|local|remote] [--docker]

  local    a model on this machine: SmolLM2, or MODEL_PATH, or MODEL_COMMAND    (the default)
  remote   an API: API_URL, API_KEY, MODEL_NAME                                 (the default where these are set)
  demo     a fixed answer

The queue: PULSAR_URL where it is set; else the Pulsar in PULSAR_HOME or ./apache-pulsar-*, started here; else the
embedded broker. PORT is the gateway's, 8081, STATUS_PORT the node's page, 8082. Variables may stand in ./.env too; the environment goes before it.
--docker runs the node as a container. All variables: python supervisor.py --help, or .env.example.
END
}

say() { printf '%s\n' "$*"; }
fail() {
  printf 'start.sh: %s\n' "$*" >&2
  exit 1
}

mode='' docker='' preparing='' pulsar='' node='' reader='' container='' work=''
for argument in "$@"; do
  case $argument in
    demo | local | remote) mode=$argument ;;
    --docker) docker=yes ;;
    -h | --help) usage && exit 0 ;;
    *) usage >&2 && exit 64 ;;
  esac
done

# Starting and ending

# begin COMMAND…: in the background, in a process group of its own, $! (job control does that, on macOS too).
begin() {
  set -m
  "$@" </dev/null &
  set +m
}

# Whether anything of this group runs. A zombie does not, and stays for ever where no init reaps it, as in some containers.
is_alive() {
  kill -0 -- "-$1" 2>/dev/null || return 1
  ! command -v ps >/dev/null || ps -A -o pgid= -o stat= | grep "^ *$1  *[^Z ]" >/dev/null
}

# await_end GROUP SECONDS: whether nothing is left of it by then.
await_end() {
  local give_up=$((SECONDS + $2))
  while is_alive "$1"; do
    [ "$SECONDS" -lt "$give_up" ] || return 1
    sleep 0.1
  done
}

kill_group() { kill -KILL -- "-$1" 2>/dev/null || true; }

# end_group SIGNAL GROUP SECONDS: kills what is left of it by then.
end_group() {
  [ -n "$2" ] && kill "-$1" -- "-$2" 2>/dev/null || return 0
  await_end "$2" "$3" || kill_group "$2"
}

# The signal to the node alone: its children are its own to end. It keeps its deadlines itself, DRAIN_TIMEOUT_S first.
end_node() {
  [ -n "$node" ] || return 0
  kill -TERM "$node" 2>/dev/null || true
  while kill -0 "$node" 2>/dev/null; do wait "$node" || true; done
  [ -z "$container" ] || docker rm --force "$container" >/dev/null 2>&1 || true
  await_end "$node" 10 || kill_group "$node"
}

# Last started, first ended, however this script ends. Last of all whatever else was begun: the log's reader, and what a
# signal came too soon after to be noted.
clean_up() {
  local status=$? left
  trap - EXIT
  trap '[ -z "$node" ] || kill -TERM "$node" 2>/dev/null || true' INT TERM HUP # the node takes a second one as "at once"
  end_group INT "$preparing" 10
  end_node
  end_group TERM "$pulsar" 20
  for left in $(jobs -p); do end_group TERM "$left" 10; done
  [ -z "$work" ] || rm -rf -- "$work"
  exit "$status"
}
trap clean_up EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

# What to run

variables() { sed -n 's/^#\([A-Z][A-Z0-9_]*\)=$/\1/p' .env.example; }
is_path() { case $1 in *_FILE | MODEL_PATH | CA_BUNDLE | STATE_DIR | PULSAR_HOME) ;; *) return 1 ;; esac; }

make_paths_absolute() {
  local name
  for name in $(variables) PULSAR_HOME; do
    if is_path "$name" && [[ ${!name:-} == [!/~]* ]]; then export "$name=$from/${!name}"; fi
  done
}

# Lines as `docker run --env-file` takes them, or a shell: quotes around a value are left away, nothing is expanded.
read_env_file() {
  local line number=0 assignment='^[[:blank:]]*(export[[:blank:]]+)?([A-Za-z_][A-Za-z0-9_]*)=(.*)$' name value
  while IFS= read -r line || [ -n "$line" ]; do
    number=$((number + 1)) line=${line%$'\r'}
    [[ ! $line =~ ^[[:blank:]]*(#.*)?$ ]] || continue
    [[ $line =~ $assignment ]] || fail "line $number of .env should be NAME=value, or a comment"
    name=${BASH_REMATCH[2]} value=${BASH_REMATCH[3]}
    if [[ $value == \"*\" || $value == \'*\' ]] && [ ${#value} -ge 2 ]; then value=${value:1:${#value}-2}; fi
    [ -n "${!name+set}" ] || export "$name=$value"
  done <.env
}

choose_mode() {
  local why=''
  [ -n "$mode" ] || mode=${NODE_TYPE:-}
  if [ -z "$mode" ]; then
    mode=local
    if [ -n "${API_URL:-}" ] && [ -n "${API_KEY:-}${API_KEY_FILE:-}" ]; then
      mode=remote why=', which API_URL and API_KEY stand for,'
    fi
  fi
  case $mode in
    demo) : "${MODEL_NAME:=static}" ;;
    local) name_local_model ;;
    remote | api)
      mode=remote
      [ -n "${API_URL:-}" ] || fail "remote needs API_URL: the API's address, like https://api.openai.com"
      [ -n "${MODEL_NAME:-}" ] || fail "remote$why needs MODEL_NAME: the API's name of the model, like gpt-4o-mini"
      ;;
    *) fail "NODE_TYPE should be demo, local or remote (it is '$mode')" ;;
  esac
  export NODE_TYPE=$mode MODEL_NAME PORT=${PORT:-8081}
}

# The node's page, where nobody said otherwise and its port is free.
choose_status_port() {
  if [ -z "${STATUS_PORT:-}" ] && [ "$PORT" != 8082 ] && is_free 8082; then export STATUS_PORT=8082; fi
}

# A file of one's own is named after itself.
name_local_model() {
  local file=${MODEL_PATH:-}
  [ -z "${MODEL_NAME:-}" ] || return 0
  [ -z "${MODEL_COMMAND:-}" ] || fail "MODEL_COMMAND needs MODEL_NAME: the name that clients are to ask for"
  file=${file##*/}
  file=${file%.*}
  MODEL_NAME=${file//[!A-Za-z0-9._-]/-}
  : "${MODEL_NAME:=smollm2}"
}

check_docker() {
  [ "$mode" != local ] || fail "--docker runs demo or remote: the image holds no model server"
  [ -f Dockerfile ] || fail "--docker builds the image from ./Dockerfile, and there is none: leave --docker away"
  command -v docker >/dev/null || fail "--docker needs Docker, and there is none: https://docs.docker.com/engine/install"
  docker version >/dev/null 2>&1 || fail "--docker: $(docker version 2>&1 | tail -n 1)"
}

is_free() { ! (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# Setting up

# Everything's temporary files are in $work, to go with it.
prepare() {
  if [ -n "$docker" ]; then
    docker build -t workernode .
    return
  fi
  scripts/venv requirement.txt
  if [ "$mode" = local ] && [ -z "${MODEL_COMMAND:-}" ]; then ./local.sh ${MODEL_PATH:+"$MODEL_PATH"}; fi
}

find_pulsar() {
  local found
  if [ -n "${PULSAR_HOME:-}" ]; then
    [ -x "$PULSAR_HOME/bin/pulsar" ] || fail "there is no bin/pulsar in PULSAR_HOME=$PULSAR_HOME"
    printf '%s' "$PULSAR_HOME"
    return
  fi
  for found in "$PWD"/apache-pulsar-*/; do
    [ -x "$found/bin/pulsar" ] || continue
    printf '%s' "${found%/}"
    return
  done
}

check_pulsar() {
  [[ $1 != *" "* ]] || fail "Pulsar's own script bears no blank in its path, $1"
  command -v curl >/dev/null || fail "curl is needed to see when Pulsar is ready (Debian, Ubuntu: apt install curl)"
  command -v java >/dev/null || fail "the Pulsar in $1 needs Java (Debian, Ubuntu: apt install openjdk-17-jre-headless)"
  { is_free 6650 && is_free 8080; } || fail "port 6650 or 8080 is taken: set PULSAR_URL to use the Pulsar that runs there"
}

run_pulsar() {
  PULSAR_MEM=${PULSAR_MEM:-"-Xms256m -Xmx768m -XX:MaxDirectMemorySize=768m"} PULSAR_LOG_DIR=$work/pulsar-logs \
    exec "$1/bin/pulsar" standalone -nfw -nss >"$work/pulsar.log" 2>&1
}

start_pulsar() {
  local give_up=$((SECONDS + 120))
  say "Starting Pulsar from $1; this takes up to a minute (its log: $work/pulsar.log)"
  begin run_pulsar "$1"
  pulsar=$!
  until curl -sf --noproxy '*' --max-time 5 http://127.0.0.1:8080/admin/v2/namespaces/public 2>/dev/null | grep -q public/default; do
    kill -0 "$pulsar" 2>/dev/null || fail_with_pulsars_log "Pulsar ended while it started"
    [ "$SECONDS" -lt "$give_up" ] || fail_with_pulsars_log "Pulsar is not ready after 2 minutes"
    sleep 0.3
  done
  export PULSAR_URL=pulsar://127.0.0.1:6650 PULSAR_ADMIN_URL=http://127.0.0.1:8080
}

fail_with_pulsars_log() {
  tail -n 20 "$work/pulsar.log" >&2
  fail "$1; its last lines are above"
}

# The node

run_node() {
  if [ -n "$docker" ]; then run_container; else exec .venv/bin/python supervisor.py; fi >"$work/log" 2>&1
}

# Docker takes each value from its own environment, so that no key stands in an argument list. The container sees the same
# files as a node without one, with the same rights; HOST, as the image's own default would be every address.
run_container() {
  local name passed=(--user "$(id -u):$(id -g)")
  export HOST=${HOST:-127.0.0.1} STATE_DIR=${STATE_DIR:-$PWD/state}
  mkdir -p "$STATE_DIR"
  for name in $(variables); do
    [ -n "${!name:-}" ] || continue
    passed+=(--env "$name")
    if is_path "$name" && [ -e "${!name}" ]; then passed+=(--volume "${!name}:${!name}$([ "$name" = STATE_DIR ] || printf :ro)"); fi
  done
  exec docker run --rm --name "$container" --network host "${passed[@]}" workernode
}

# Passes the node's log on, to its end, and notes in $work/ready when a request would be answered: a gateway that listens
# (its /health says no more), a queue that is subscribed to, and a model, which may still be loading long after both.
pass_log_on() {
  exec <"$work/log"
  trap '' INT TERM HUP
  local line gateway='' queue='' model=''
  while IFS= read -r line || [ -n "$line" ]; do
    printf '%s\n' "$line" >&2
    case $line in
      *"gateway is ready"*) gateway=yes ;;
      *"subscribed at "*) queue=yes ;;
      *"backend "[0-9]*" is ready after "*) model=yes ;;
    esac
    if [ -n "$gateway" ] && [ -n "$queue" ] && [ -n "$model" ]; then
      : >"$work/ready"
      exec cat >&2
    fi
  done
}

start_node() {
  mkfifo "$work/log"
  [ -z "$docker" ] || container=workernode-$$
  begin run_node
  node=$!
  begin pass_log_on
  reader=$!
}

await_node() {
  local longest=120 give_up
  [ "$mode" != local ] || longest=900 # a large model loads for minutes; the node's own limit is BOOT_TIMEOUT_S
  give_up=$((SECONDS + longest))
  until [ -e "$work/ready" ]; do
    kill -0 "$node" 2>/dev/null || node_ended "before it was ready"
    [ "$SECONDS" -lt "$give_up" ] || fail "the node is not ready after $longest s; its lines above say how far it came"
    sleep 0.05
  done
}

# node_ended WHEN: with its exit code, once its last lines are out.
node_ended() {
  local status=0
  wait "$node" || status=$?
  await_end "$node" 10 || true
  await_end "$reader" 5 || true
  printf 'start.sh: the node ended %s, with exit code %s; its last lines above say why\n' "$1" "$status" >&2
  [ "$status" -ne 0 ] || [ -e "$work/ready" ] || status=1
  exit "$status"
}

first_model() { curl -s --noproxy '*' --max-time 5 "$1/models" | sed -n 's/.*"data":\[{"id":"\([^"]*\)".*/\1/p'; }

announce() {
  local host=${HOST:-127.0.0.1} ask=./ai.sh base
  case $host in 0.0.0.0) host=127.0.0.1 ;; *:*) host="[$host]" ;; esac
  base=http://$host:$PORT/v1
  [ "$(first_model "$base")" = "$MODEL_NAME" ] || ask="MODEL_NAME=$(printf %q "$MODEL_NAME") $ask" # which ai.sh asks else
  [ "$host" = 127.0.0.1 ] || ask="HOST=$HOST $ask"
  [ "$PORT" = 8081 ] || ask="PORT=$PORT $ask"
  say "WorkerNode serves the model $MODEL_NAME ($mode) at $base"
  say "Next, in another terminal: $ask   or   $ask stream"
  say "In a browser: http://$host:$PORT/ to chat${STATUS_PORT:+, http://${STATUS_HOST:-127.0.0.1}:$STATUS_PORT/ to see what the node does}"
  say "Ctrl-C ends everything that was started here."
}

make_paths_absolute
[ ! -f .env ] || read_env_file
choose_mode
[ -z "$docker" ] || check_docker
is_free "$PORT" || fail "port $PORT is taken: end what listens there, or choose another with PORT=…"
choose_status_port
home=''
if [ -z "${PULSAR_URL:-}" ]; then
  home=$(find_pulsar)
  [ -z "$home" ] || check_pulsar "$home"
fi
work=$(mktemp -d)
export TMPDIR=$work
begin prepare
preparing=$!
wait "$preparing" || fail "this could not be set up; the lines above say why"
preparing=''
[ -z "$home" ] || start_pulsar "$home"
start_node
await_node
announce
wait "$node" || true
node_ended "by itself"
