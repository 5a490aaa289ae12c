"""llama.cpp's own HTTP server, from the xllamacpp wheel, in a process of its own.

    python -P backends/xllama.py --model FILE --port PORT --slots N [--context TOKENS] [--alias NAME] [--threads N]

Serves OpenAI's API on 127.0.0.1 until a signal ends it. `/health` says 503 while the model loads.
Exit status 1, with llama.cpp's reasons on stderr, where the model cannot be loaded or the port is taken.
"""

from __future__ import annotations

import argparse
import signal
import sys
from typing import Any

# Prompts that were computed, kept in main memory for their next turn: llama.cpp's default is 8 GiB.
PROMPT_CACHE_MIB = 128
WARNINGS = 2  # llama.cpp's log level: errors 1, warnings 2, its chatter 3


def main(arguments: list[str] | None = None) -> int:
    options = _options(arguments)
    import xllamacpp  # type: ignore[import-not-found,import-untyped,unused-ignore]  # takes 0.1 s: not for --help

    try:
        server = xllamacpp.Server(_parameters(xllamacpp.CommonParams(), options))
    except RuntimeError as error:
        print(f"llama.cpp: {error}", file=sys.stderr)
        return 1
    print(f"serving {server.listening_address}, {options.slots} slots of {options.context} tokens", flush=True)
    while True:
        signal.pause()


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="llama.cpp's HTTP server on 127.0.0.1")
    parser.add_argument("--model", required=True, help="a GGUF file")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--slots", type=int, required=True, help="requests computed at once")
    parser.add_argument("--context", type=int, default=4096, help="tokens of prompt and answer together, per slot")
    parser.add_argument("--alias", help="the model's name in answers; by default its path")
    parser.add_argument("--threads", type=int, default=-1, help="CPU threads; by default as llama.cpp chooses")
    return parser.parse_args(arguments)


def _parameters(params: Any, options: argparse.Namespace) -> Any:
    params.model.path = options.model
    params.model_alias = {options.alias or options.model}
    params.hostnames, params.port = ["127.0.0.1"], options.port
    params.n_parallel = options.slots
    # The context is allocated at once and divided by the slots. A shared one (kv_unified) would let a long request
    # overflow it, whereupon llama.cpp fails every request of that batch, not the long one alone.
    params.n_ctx, params.kv_unified = options.slots * options.context, False
    params.cpuparams.n_threads = options.threads
    params.cache_ram_mib = PROMPT_CACHE_MIB
    params.endpoint_slots = True
    params.cors_origins = "http://127.0.0.1"  # the default lets every page in this machine's browser use the model
    params.ui = False
    params.verbosity = WARNINGS
    return params


if __name__ == "__main__":
    sys.exit(main())
