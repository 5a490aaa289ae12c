"""Environment → one frozen, validated Settings object.

Each variable is described once, here: its default, what it accepts and what it is for.
`--help`, `.env.example` and the README's table are printed from these descriptions.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from errors import redact

CREDENTIALS = {"API_KEY": "api-key", "PULSAR_TOKEN": "pulsar-token"}  # their names in CREDENTIALS_DIRECTORY
SECRET_VARIABLES = ("API_KEY", "PULSAR_TOKEN", "API_KEY_FILE", "PULSAR_TOKEN_FILE", "CREDENTIALS_DIRECTORY", "GATEWAY_API_KEYS_FILE")


class ConfigurationMistakes(Exception):
    """Every mistake of the configuration at once; each line names its variable."""

    def __init__(self, mistakes: list[str]) -> None:
        super().__init__("\n".join(mistakes))
        self.mistakes = mistakes


def _text(value: str) -> str:
    return value


def _choice(*allowed: str, aliases: Mapping[str, str] | None = None) -> Callable[[str], str]:
    def parse(value: str) -> str:
        name = (aliases or {}).get(value.lower(), value.lower())
        if name not in allowed:
            raise ValueError(f"should be one of {', '.join(allowed)}")
        return name

    return parse


def _whole(low: int, high: int) -> Callable[[str], int]:
    def parse(value: str) -> int:
        if not re.fullmatch(r"[0-9]{1,9}", value) or not low <= int(value) <= high:
            raise ValueError(f"should be a whole number from {low:,} to {high:,}")
        return int(value)

    return parse


def _seconds(value: str) -> float:
    """`90`, `1.5`, `500ms`, `90s`, `5m`, `1h30m` → seconds, above 0."""
    units = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
    valid = re.fullmatch(r"[0-9]+(\.[0-9]+)?|([0-9]+(\.[0-9]+)?(ms|h|m|s))+", value)
    total = sum(float(n) * units[unit] for n, unit in re.findall(r"([0-9.]+)(ms|h|m|s|)", value)) if valid else 0.0
    if not 0 < total < 1e7:
        raise ValueError("should be a duration above 0, in seconds or like 500ms, 90s, 5m")
    return total


def _percent(most: int) -> Callable[[str], float]:
    def parse(value: str) -> float:
        """`5` → 0.05."""
        if not re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,3})?%?", value) or not 0 < (percent := float(value.rstrip("%"))) <= most:
            raise ValueError(f"should be a percentage above 0, {most} at most")
        return percent / 100

    return parse


def _gpu_ids(value: str) -> tuple[str, ...]:
    """`0,1` or UUIDs as nvidia-smi -L shows them."""
    ids = tuple(part.strip() for part in value.split(","))
    if not all(re.fullmatch(r"[0-9]{1,3}|(GPU|MIG)-[0-9A-Za-z/-]+", each) for each in ids):
        raise ValueError("should be numbers or UUIDs of GPUs with commas between, like 0,1, as nvidia-smi -L lists them")
    if len(set(ids)) < len(ids):
        raise ValueError("should name each GPU once")
    return ids


def _flag(value: str) -> bool:
    if value.lower() not in ("true", "false", "1", "0", "yes", "no", "on", "off"):
        raise ValueError("should be true or false")
    return value.lower() in ("true", "1", "yes", "on")


def _url(*schemes: str) -> Callable[[str], str]:
    expected = f"should be an address like {schemes[0]}://host:port (scheme {' or '.join(schemes)})"

    def parse(value: str) -> str:
        scheme, _, rest = value.partition("://")
        hosts = rest.split(",") if schemes[0] == "pulsar" else [rest]  # Pulsar takes a list of brokers
        if scheme.lower() not in schemes or any(c.isspace() for c in value) or not all(map(_is_host, hosts)):
            raise ValueError(expected)
        if "@" in rest.partition("/")[0]:
            raise ValueError("should hold no user name or password")
        return f"{scheme.lower()}://{rest.rstrip('/')}"

    return parse


def _is_host(value: str) -> bool:
    """Whether `host`, `host:port` or the like with a path behind it can be connected to."""
    try:
        parts = urlsplit(f"//{value}")
        return bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, a broken IPv6 address
        return False


def _host(value: str) -> str:
    if not re.fullmatch(r"[^\s/]+", value):
        raise ValueError("should be a host's name or address alone, like 127.0.0.1 or 0.0.0.0")
    return value


def _is_loopback(host: str) -> bool:
    return host.lower() in ("localhost", "::1", "[::1]") or host.startswith("127.")


def _model_name(value: str) -> str:
    if "/" in value:
        last = value.rstrip("/").rsplit("/", 1)[-1] or "name"
        raise ValueError(
            f"should hold no '/', as it becomes part of a topic's name: set MODEL_NAME={last} and UPSTREAM_MODEL={value}"
        )
    return _topic(value)


def _topic(value: str) -> str:
    if not re.fullmatch(r"[^\s/]{1,200}", value):
        raise ValueError("should be a name of 1 to 200 characters without '/' or blanks")
    return value


def _readable_file(value: str) -> str:
    try:
        path = Path(value).expanduser()
        readable = path.is_file() and os.access(path, os.R_OK)
    except (OSError, RuntimeError):  # a name that is too long, a home that nobody has
        readable = False
    if not readable:
        raise ValueError("should be the path of a file that can be read")
    return str(path)


def _keys_file(value: str) -> str:
    from gateway.keyfile import digests_in  # here, as most have none

    path = _readable_file(value)
    try:
        digests_in(path)
    except (OSError, ValueError) as mistake:
        raise ValueError(f"should hold a key on each line: {mistake}") from None
    return path


def _folder(value: str) -> str:
    path = Path(value).expanduser()
    if path.exists() and not (path.is_dir() and os.access(path, os.W_OK | os.X_OK)):
        raise ValueError("should be a folder that can be written to, or one that can be made")
    return str(path)


def _endpoints(value: str) -> str:
    from answers.allowed import Allowed  # here, as only few name any

    try:
        Allowed(value)
    except ValueError as mistake:
        raise ValueError(f"should list hosts, *.suffixes or networks, each with a :port or none: {str(mistake)[:100]!r} is none") from None
    return value


def variable(
    default: Any, parse: Callable[[str], Any], help_text: str, *, name: str | None = None, shown_default: str | None = None,
    secret: bool = False,
) -> Any:
    """One environment variable as a dataclass field: `name` where it is not the field's own name in capitals."""
    metadata = {"name": name, "parse": parse, "help": help_text, "shown_default": shown_default}
    return dataclasses.field(default=default, repr=not secret, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the environment says, validated. Durations are in seconds."""

    node_type: str = variable(
        "demo", _choice("remote", "local", "demo", aliases={"api": "remote"}),
        "remote: an API answers; local: a model process on this machine; demo: a fixed answer",
    )
    model_name: str = variable(
        "", _model_name, "the model's name, and the topic's: model-{MODEL_NAME}", shown_default="static, for the demo"
    )
    api_url: str = variable("", _url("https", "http"), "the API: https://api.openai.com, …/v1 or a full …/chat/completions")
    api_key: str = variable("", _text, "the API's key; never logged", secret=True)
    api_key_file: str = variable("", _readable_file, "a file that holds API_KEY, instead of it", secret=True)
    upstream_model: str = variable(
        "", _text, "the model's name at the API, where it is not MODEL_NAME", shown_default="MODEL_NAME"
    )
    max_process_num: int = variable(128, _whole(1, 65536), "requests handled at once, over all children")
    backend_processes: int = variable(
        0, _whole(1, 512), "backend children at work; one more is a spare",
        shown_default="2; one for each 128 requests where there are cores for more, one for each 512 in any case",
    )
    pulsar_url: str = variable("", _url("pulsar", "pulsar+ssl"), "the queue: pulsar://host:6650 or pulsar+ssl://host:6651",
        shown_default="the embedded broker, for one machine")
    pulsar_token: str = variable("", _text, "token for Pulsar; never logged", secret=True)
    pulsar_token_file: str = variable("", _readable_file, "a file that holds PULSAR_TOKEN, instead of it", secret=True)
    pulsar_admin_url: str = variable(
        "", _url("http", "https"),
        "Pulsar's admin address, http://host:8080: lets the gateway list models and refuse unknown ones",
    )
    res_topic_name: str = variable("res-topic", _topic, "topic of the usage records")
    state_dir: str = variable(
        "", _folder, "folder for what has to outlive the node: the journal that counts attempts over its death, the embedded broker's messages, the model servers' logs",
        shown_default="no journal; all in one: state/ beside supervisor.py",
    )
    debug: bool = variable(False, _flag, "true: a more talkative log")
    status_port: int = variable(
        0, _whole(1, 65535), "port, on STATUS_HOST, for the node's page, /metrics, /livez and /readyz", shown_default="none"
    )
    allow_kill: bool = variable(
        False, _flag, "true: the node's page may kill children, to see that nothing is lost, where STATUS_HOST is loopback",
        shown_default="false; the demo may",
    )
    status_host: str = variable("127.0.0.1", _host, "address that STATUS_PORT binds; a pod's probes need 0.0.0.0")
    log_format: str = variable("text", _choice("text", "json"), "text or json")
    aimodel_name: str = variable("", _text, "the Kubernetes AIModel that this node serves: named in the usage records, and its Events say when the node is broken")
    kubernetes_service_host: str = variable(
        "", _text, "set by Kubernetes in every pod: a trouble that would end the node with 78 keeps it up there, not ready"
    )
    aimodel_namespace: str = variable("", _text, "its namespace; where it is unset, Events go to the pod's own, or to default")
    credentials_directory: str = variable(
        "", _text, "folder whose files api-key and pulsar-token, where they are there, serve as API_KEY_FILE and PULSAR_TOKEN_FILE; systemd's LoadCredential sets it", secret=True,
    )
    port: int = variable(
        0, _whole(1, 65535), "port of the gateway; where set, the node starts one",
        shown_default="no gateway; python -m gateway: 8081",
    )
    host: str = variable("127.0.0.1", _host, "address that the gateway binds")
    answer_url: str = variable("", _url("http", "https"), "where nodes reach the gateway", shown_default="http://HOST:PORT")
    gateway_api_keys_file: str = variable(
        "", _keys_file, "a file with the keys that clients of the gateway need, one a line, as it is or as sha256:HEX; read anew when it changes",
        shown_default="nobody needs one", secret=True,
    )
    max_pending: int = variable(4096, _whole(1, 1_000_000), "requests that may wait at the gateway at once; more are refused with 503")
    timeout_s: float = variable(
        300.0, _seconds, "how long the gateway waits for an answer, or for the next piece of a stream",
        name="TIMEOUT", shown_default="5m",
    )
    model_path: str = variable(
        "", _readable_file, "local: a GGUF file, or a llamafile", shown_default="SmolLM2-135M, once ./local.sh has run"
    )
    model_command: str = variable(
        "", _text, "local: a command that serves OpenAI's API; {port}, {model} and {gpu} are filled in"
    )
    gpu_ids: tuple[str, ...] = variable(
        (), _gpu_ids, "local: GPUs for the model servers, like 0,1 or UUIDs; divided among them as CUDA_VISIBLE_DEVICES",
        shown_default="what the model server takes",
    )
    local_replicas: int = variable(
        1, _whole(1, 64), "local: model servers, one child each", shown_default="one for each of GPU_IDS, else 1"
    )
    local_adaptive: bool = variable(
        True, _flag, "local: whether to take fewer requests at once where the machine or the model has no use for more; false: always all slots"
    )
    local_memory_reserve: float = variable(
        0.05, _percent(90), "local: percent of memory (of the machine, its cgroup, a GPU; 2 GiB at most) that are to stay free: below, half as many requests at once, and 1 where only two fifths of it are left",
        name="LOCAL_MEMORY_RESERVE_PERCENT", shown_default="5",
    )
    local_memory_stall: float = variable(
        0.10, _percent(100), "local: half as many, where programs stand still for want of memory so many percent of the time (PSI); 100: never",
        name="LOCAL_MEMORY_STALL_PERCENT", shown_default="10",
    )
    local_others_cpu: float = variable(
        0.40, _percent(100), "local: fewer, in proportion, where other programs use so many percent of the node's CPU and somebody waits for it; 100: never",
        name="LOCAL_OTHERS_CPU_PERCENT", shown_default="40",
    )
    local_gain: float = variable(
        0.05, _percent(100), "local: twice as many requests at once have to bring so many percent more tokens a second to be worth it",
        name="LOCAL_GAIN_PERCENT", shown_default="5",
    )
    boot_timeout_s: float = variable(600.0, _seconds, "local: how long a model may take to load")
    connect_timeout_s: float = variable(10.0, _seconds, "to connect to the upstream")
    first_token_timeout_s: float = variable(120.0, _seconds, "from the request sent to the first output of the upstream")
    read_timeout_s: float = variable(60.0, _seconds, "between two pieces of the upstream's output")
    generation_timeout_s: float = variable(
        900.0, _seconds, "for all of one answer, from its first output on: a model that never ends by itself is ended, with an error"
    )
    request_ttl_s: float = variable(
        300.0, _seconds, "a request older than this, from its first publish, is refused rather than computed"
    )
    rate_limit_rpm: int = variable(
        0, _whole(1, 100_000_000), "requests a minute that this node may send to the API, where the API does not tell by itself",
        shown_default="what x-ratelimit-* headers and 429s tell",
    )
    rate_limit_tpm: int = variable(0, _whole(1, 100_000_000), "tokens a minute, likewise", shown_default="likewise")
    max_attempts: int = variable(3, _whole(1, 100), "how often a request is tried before it is answered with the error")
    child_memory_limit_mb: int = variable(
        1024, _whole(64, 1 << 20), "a backend child over this, its model server not counted, ends what it has and is replaced"
    )
    drain_timeout_s: float = variable(8.0, _seconds, "after SIGTERM, how long running requests may take to end")
    on_trouble: str = variable(
        "hold", _choice("hold", "answer"),
        "when the node can serve nobody: hold gives requests back for other nodes, answer answers with the error",
    )
    recheck_s: float = variable(
        60.0, _seconds, "how soon an upstream that serves this node no more is looked at again; up to ten times as long later"
    )
    allowed_endpoints: str = variable(
        "", _endpoints, "where a node may answer to, as requests name it themselves: hosts, *.suffixes and networks, each with a :port or none, like *.svc.cluster.local, 10.0.0.0/8:8081",
        shown_default="anywhere but link-local, metadata, multicast and unspecified addresses",
    )
    ca_bundle: str = variable("", _readable_file, "certificates to trust instead of the system's (PEM)")

    @functools.cached_property
    def secrets(self) -> tuple[str, ...]:
        """Strings that may appear nowhere but on the wire they belong to."""
        # A key of a few letters, as tests use, is no secret: taking it out would only garble the log.
        return tuple(s for s in (self.api_key, self.pulsar_token) if len(s) >= 8)


def variable_name(field: dataclasses.Field[Any]) -> str:
    return field.metadata["name"] or field.name.upper()


def load(environ: Mapping[str, str] | None = None, *, gateway_alone: bool = False) -> Settings:
    """Read the environment.

    gateway_alone: for `python -m gateway`, which needs a queue and a port but no model.
    Raises ConfigurationMistakes with every mistake, never only the first.
    """
    environ = os.environ if environ is None else environ
    values: dict[str, Any] = {}
    mistakes: list[str] = []
    for field in dataclasses.fields(Settings):
        given = environ.get(variable_name(field), "").strip()
        if not given:  # an empty variable is an unset one, as `docker run -e X=` and systemd leave them
            continue
        try:
            values[field.name] = field.metadata["parse"](given)
        except ValueError as mistake:
            # Someone may have put a key, or an address with a password, where it does not belong.
            shown = "" if not field.repr else f" (it is {redact(re.sub(r'//[^/@]*@', '//…@', given))[:100]!r})"
            mistakes.append(f"{variable_name(field)} {mistake}{shown}")
    for name in ("api_key", "pulsar_token"):
        _find_credential(name, values)
        _read_secret(name, values, mistakes)
    mistakes += _conflicts(values, mistakes, gateway_alone, _needs_queue(values, environ, gateway_alone))
    if mistakes:
        raise ConfigurationMistakes(mistakes)
    return Settings(**_derived(values, gateway_alone))


def _find_credential(name: str, values: dict[str, Any]) -> None:
    """What is set goes before what systemd brought along, which serves every node of the machine."""
    folder = values.get("credentials_directory")
    path = Path(folder, CREDENTIALS[name.upper()]) if folder else None
    if path is not None and path.is_file() and not {name, f"{name}_file"} & values.keys():
        values[f"{name}_file"] = str(path)


def _read_secret(name: str, values: dict[str, Any], mistakes: list[str]) -> None:
    """From the variable or the file that holds it; nothing of what is in there may be shown."""
    variable_, path = name.upper(), values.get(f"{name}_file")
    if path is not None and name in values:
        mistakes.append(f"{variable_} and {variable_}_FILE are both set: unset one of them")
        return
    if path is not None:
        variable_ = f"{variable_}_FILE"
        try:
            values[name] = Path(path).read_text(encoding="ascii", errors="replace").strip()
        except OSError as error:
            mistakes.append(f"{variable_} should be the path of a file that can be read: {error.strerror}")
            return
    if name in values and not re.fullmatch(r"(?![\"'])[\x21-\x7e]+", values[name]):
        verb = "be" if path is None else "hold one line of"
        mistakes.append(f"{variable_} should {verb} printable ASCII without blanks: check for a line break or quotes copied along")


def _needs_queue(values: Mapping[str, Any], environ: Mapping[str, str], gateway_alone: bool) -> str:
    """Why there must be a PULSAR_URL; "" where the embedded broker may serve instead: it is for one machine."""
    if gateway_alone:
        return "for a gateway by itself"
    return "in Kubernetes" if environ.get("KUBERNETES_SERVICE_HOST") or values.get("aimodel_name") else ""


def _conflicts(values: Mapping[str, Any], mistakes: list[str], gateway_alone: bool, needs_queue: str) -> list[str]:
    """What is wrong between variables; a variable that was refused by itself is not complained of twice."""
    refused = {line.split(" ", 1)[0] for line in mistakes}
    found = []
    if "pulsar_url" not in values and "PULSAR_URL" not in refused and needs_queue:
        found.append(f"PULSAR_URL should be set {needs_queue}: the queue's address, like pulsar://localhost:6650")
    if gateway_alone:
        return found
    if values.get("allow_kill") and not _is_loopback(values.get("status_host", "127.0.0.1")):
        found.append("ALLOW_KILL should be set only where STATUS_HOST is this machine's own: set STATUS_HOST=127.0.0.1")
    node_type = values.get("node_type", "demo")
    if node_type != "demo" and "model_name" not in values and "MODEL_NAME" not in refused:
        found.append(f"MODEL_NAME should be set for NODE_TYPE={node_type}: the model's name, and the topic's")
    if node_type == "remote" and "api_url" not in values and "API_URL" not in refused:
        found.append("API_URL should be set for NODE_TYPE=remote: the API's address, like https://api.openai.com")
    return found


def _derived(values: dict[str, Any], gateway_alone: bool) -> dict[str, Any]:
    values.setdefault("model_name", "static")
    values.setdefault("upstream_model", values["model_name"])
    values.setdefault("local_replicas", len(values.get("gpu_ids", ())) or 1)
    if gateway_alone:
        values.setdefault("port", 8081)
    return values


def help_text() -> str:
    """The variables as `--help` prints them."""
    lines = []
    for field in dataclasses.fields(Settings):
        lines.append(f"  {variable_name(field):<22} {field.metadata['help']} [{shown_default(field)}]")
    return "\n".join(lines)


def env_example() -> str:
    """The text of .env.example."""
    lines = [
        "# Copy to .env and change what you need; an empty variable is an unset one. ./start.sh reads .env. Whatever else is to:",
        "# `docker run --env-file .env` (no quotes around values), or in a shell `set -a; . ./.env` (quotes where there are blanks).",
    ]
    for field in dataclasses.fields(Settings):
        lines += ["", f"# {field.metadata['help']}", f"# default: {shown_default(field)}", f"#{variable_name(field)}="]
    return "\n".join(lines) + "\n"


def readme_table() -> str:
    """The variables as README.md shows them."""
    rows = [f"| {variable_name(f)} | {f.metadata['help']} | {shown_default(f)} |" for f in dataclasses.fields(Settings)]
    return "\n".join(["| variable | meaning | default |", "|---|---|---|", *rows]) + "\n"


def shown_default(field: dataclasses.Field[Any]) -> str:
    if field.metadata["shown_default"]:
        return str(field.metadata["shown_default"])
    if isinstance(field.default, bool):
        return str(field.default).lower()
    return f"{field.default:g}" if isinstance(field.default, float) else str(field.default or "unset")
