"""docs/configuration.md, from config.py's descriptions and what is worth saying beside them.

    python -m config_docs > docs/configuration.md
"""

from __future__ import annotations

import dataclasses
from typing import Any

from config import SECRET_VARIABLES, Settings, shown_default, variable_name

_HEAD = """# Configuration
Everything is set by environment variables, read once at the start; an empty one is an unset one. A wrong value ends the start
with exit code 78 and a line for each mistake, which names the variable and what it should be. `--check` says whether what the
environment names is really there. Durations are in seconds, or like `500ms`, `90s`, `5m`, `1h30m`.

This page is made from `config.py`, as `--help` and `.env.example` are: `python -m config_docs > docs/configuration.md`.
"""

# Titles, and the variables below each; what is named nowhere comes last.
_GROUPS: list[tuple[str, list[str]]] = [
    ("The model", ["NODE_TYPE", "MODEL_NAME", "API_URL", "API_KEY", "API_KEY_FILE", "UPSTREAM_MODEL"]),
    ("A local model", ["MODEL_PATH", "MODEL_COMMAND", "LOCAL_REPLICAS", "GPU_IDS", "BOOT_TIMEOUT_S", "LOCAL_ADAPTIVE",
                       "LOCAL_MEMORY_RESERVE_PERCENT", "LOCAL_MEMORY_STALL_PERCENT", "LOCAL_OTHERS_CPU_PERCENT", "LOCAL_GAIN_PERCENT"]),
    ("The queue", ["PULSAR_URL", "PULSAR_TOKEN", "PULSAR_TOKEN_FILE", "PULSAR_ADMIN_URL", "RES_TOPIC_NAME", "STATE_DIR"]),
    ("How much at once", ["MAX_PROCESS_NUM", "BACKEND_PROCESSES", "RATE_LIMIT_RPM", "RATE_LIMIT_TPM", "CHILD_MEMORY_LIMIT_MB"]),
    ("How long, how often", ["CONNECT_TIMEOUT_S", "FIRST_TOKEN_TIMEOUT_S", "READ_TIMEOUT_S", "GENERATION_TIMEOUT_S", "REQUEST_TTL_S", "MAX_ATTEMPTS",
                             "DRAIN_TIMEOUT_S", "ON_TROUBLE", "RECHECK_S"]),
    ("The gateway", ["PORT", "HOST", "ANSWER_URL", "TIMEOUT", "MAX_PENDING", "GATEWAY_API_KEYS_FILE"]),
    ("Security", ["ALLOWED_ENDPOINTS", "CA_BUNDLE", "CREDENTIALS_DIRECTORY"]),
    ("To be looked at", ["STATUS_PORT", "STATUS_HOST", "ALLOW_KILL", "LOG_FORMAT", "DEBUG"]),
    ("Kubernetes", ["AIMODEL_NAME", "AIMODEL_NAMESPACE", "KUBERNETES_SERVICE_HOST"]),
]  # fmt: skip

_NOTES = {
    "NODE_TYPE": "`api` is taken as `remote`. `./start.sh` chooses by what else is set.",
    "MODEL_NAME": "It becomes part of the topic's name, so it holds no `/`: for `meta-llama/Llama-3` set `MODEL_NAME=Llama-3` and "
    "`UPSTREAM_MODEL=meta-llama/Llama-3`. All nodes of one name share its requests.",
    "MODEL_COMMAND": "Any server of OpenAI's API, such as `vllm serve NAME --port {port}` or `llama-server -m {model} --port {port}`. It is "
    "started without a shell, and with none of the node's secrets in its environment.",
    "PULSAR_URL": "Unset, the node brings a broker of its own, for this machine and the nodes on it. In Kubernetes, and with "
    "`AIMODEL_NAME`, unset is a mistake.",
    "PULSAR_TOKEN_FILE": "It is read anew when it changes, so that a token that expires can be renewed without a restart.",
    "RES_TOPIC_NAME": "Create a subscription on it before the first request: Pulsar forgets what no subscription waits for.",
    "STATE_DIR": "Without it a request that kills whole nodes is stopped by `REQUEST_TTL_S` only. A few kilobytes, but for the embedded "
    "broker's messages.",
    "MAX_PROCESS_NUM": "For a local model the model server's slots, memory and CPU decide below this bound. Requests that are not taken stay "
    "in the queue, where other nodes can take them.",
    "BACKEND_PROCESSES": "More than the cores gain nothing but isolation: a crash takes along what one of them had.",
    "RATE_LIMIT_RPM": "Of one node: three nodes on one key get a third each.",
    "REQUEST_TTL_S": "Counted from the first publish over all attempts. At most the `TIMEOUT` of the gateways: nobody waits for what comes later.",
    "MAX_ATTEMPTS": "Failures of the upstream that may pass, and deaths of a process with the request aboard. A rate limit counts nothing.",
    "DRAIN_TIMEOUT_S": "Give whoever sends SIGTERM more patience than this: `docker stop -t`, `terminationGracePeriodSeconds`, `TimeoutStopSec`.",
    "ON_TROUBLE": "All in one it is always `answer`, as there is no other node.",
    "HOST": "Whoever reaches it can ask; see security.md before you set 0.0.0.0.",
    "ANSWER_URL": "Set it where nodes reach the gateway by another name or port than it binds: behind a proxy, or in Kubernetes by the pod's own "
    "address, as an answer must come back to the gateway that asked.",
    "TIMEOUT": "A proxy before the gateway needs longer time-outs than this.",
    "MAX_PENDING": "The limit of open files has to allow about twice as many; the gateway raises it to what the system lets it have.",
    "GATEWAY_API_KEYS_FILE": "Unset, everybody who reaches the port may ask. security.md shows how to make one.",
    "ALLOWED_ENDPOINTS": "security.md says what an entry can be, and what is refused in any case.",
    "STATUS_HOST": "There is no password on it: open it to probes and to who collects metrics, not to clients.",
    "LOG_FORMAT": "log.md lists the fields.",
    "DEBUG": "Adds what each request asked and was answered, up to 4,000 characters of it: prompts are then in the log.",
    "AIMODEL_NAME": "events.md says what is reported, and with which rights.",
}


def text() -> str:
    fields = {variable_name(field): field for field in dataclasses.fields(Settings)}
    named = {name for _, names in _GROUPS for name in names}
    groups = [*_GROUPS, ("More", [name for name in fields if name not in named])]
    parts = [_HEAD]
    for title, names in groups:
        there = [fields[name] for name in names if name in fields]
        if there:
            parts += [f"## {title}", *map(_entry, there)]
    return "\n".join(parts).rstrip("\n") + "\n"


def _entry(field: dataclasses.Field[Any]) -> str:
    name = variable_name(field)
    said = [f"{field.metadata['help'][0].upper()}{field.metadata['help'][1:]}.", _accepted(field), f"Default: {shown_default(field)}."]
    if name in SECRET_VARIABLES:
        said.append("Never shown.")
    return "\n".join([f"### `{name}`", " ".join(filter(None, said)), *([_NOTES[name]] if name in _NOTES else []), ""])


def _accepted(field: dataclasses.Field[Any]) -> str:
    """In the words that refuse anything else."""
    try:
        field.metadata["parse"]("\n: ")
    except ValueError as refusal:
        return f"It {str(refusal).partition(': ')[0]}."
    return ""


if __name__ == "__main__":
    print(text(), end="")
