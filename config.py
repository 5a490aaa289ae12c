"""Environment → one frozen, validated Settings object.

Each variable is described once, here: its default, what it accepts and what it is for.
`--help`, `.env.example` and the README's table are printed from these descriptions.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

SECRET_VARIABLES = ("API_KEY", "PULSAR_TOKEN", "API_KEY_FILE", "PULSAR_TOKEN_FILE")


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
        if not value.isascii() or not value.isdigit() or not low <= int(value) <= high:
            raise ValueError(f"should be a whole number from {low:,} to {high:,}")
        return int(value)

    return parse


def _seconds(value: str) -> float:
    """`90`, `1.5`, `500ms`, `90s`, `5m`, `1h30m` → seconds, above 0."""
    if not re.fullmatch(r"\d+(\.\d+)?|(\d+(\.\d+)?(ms|h|m|s))+", value):
        raise ValueError("should be a duration above 0, in seconds or like 500ms, 90s, 5m")
    units = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
    total = sum(float(n) * units[unit] for n, unit in re.findall(r"(\d+(?:\.\d+)?)(ms|h|m|s|)", value))
    if not 0 < total < 1e7:
        raise ValueError("should be a duration above 0, in seconds or like 500ms, 90s, 5m")
    return total


def _flag(value: str) -> bool:
    if value.lower() not in ("true", "false", "1", "0", "yes", "no", "on", "off"):
        raise ValueError("should be true or false")
    return value.lower() in ("true", "1", "yes", "on")


def _url(*schemes: str) -> Callable[[str], str]:
    expected = f"should be an address like {schemes[0]}://host:port"

    def parse(value: str) -> str:
        try:
            parts = urlsplit(value.split(",")[0] if schemes[0].startswith("pulsar") else value)
            valid = parts.scheme in schemes and bool(parts.hostname) and parts.port != 0
        except ValueError:  # a port that is no number, a broken IPv6 address
            valid = False
        if not valid or any(c.isspace() for c in value):
            raise ValueError(f"{expected} (scheme {' or '.join(schemes)})")
        return value.rstrip("/")

    return parse


def _model_name(value: str) -> str:
    if "/" in value:
        raise ValueError(
            f"should hold no '/', as it becomes part of a topic's name: set MODEL_NAME={value.rsplit('/', 1)[-1]} "
            f"and UPSTREAM_MODEL={value}"
        )
    return _topic(value)


def _topic(value: str) -> str:
    if not re.fullmatch(r"[^\s/]{1,200}", value):
        raise ValueError("should be a name of 1 to 200 characters without '/' or blanks")
    return value


def _existing_file(value: str) -> str:
    path = Path(value).expanduser()
    if not path.is_file():
        raise ValueError(f"should be the path of a file: there is none at {path}")
    return str(path)


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
    model_name: str = variable("", _model_name, "the model's name, and the topic's: model-{MODEL_NAME}", shown_default="static, for the demo")
    api_url: str = variable("", _url("https", "http"), "the API: https://api.openai.com, …/v1 or a full …/chat/completions")
    api_key: str = variable("", _text, "the API's key; never logged", secret=True)
    api_key_file: str = variable("", _existing_file, "a file that holds API_KEY, instead of it")
    upstream_model: str = variable("", _text, "the model's name at the API, where it is not MODEL_NAME", shown_default="MODEL_NAME")
    max_process_num: int = variable(128, _whole(1, 65536), "requests handled at once, over all children")
    backend_processes: int = variable(0, _whole(1, 512), "backend children", shown_default="enough for the cores and for 64 requests each")
    pulsar_url: str = variable("", _url("pulsar", "pulsar+ssl"), "the queue: pulsar://host:6650 or pulsar+ssl://host:6651")
    pulsar_token: str = variable("", _text, "token for Pulsar; never logged", secret=True)
    pulsar_token_file: str = variable("", _existing_file, "a file that holds PULSAR_TOKEN, instead of it")
    pulsar_admin_url: str = variable("", _url("http", "https"), "Pulsar's admin address, http://host:8080: lets the gateway list models and refuse unknown ones")
    res_topic_name: str = variable("res-topic", _topic, "topic of the usage records")
    debug: bool = variable(False, _flag, "true: a more talkative log")
    log_format: str = variable("text", _choice("text", "json"), "text or json")
    aimodel_name: str = variable("", _text, "the Kubernetes AIModel that this node serves, named in the usage records")
    aimodel_namespace: str = variable("", _text, "its namespace")
    port: int = variable(0, _whole(1, 65535), "port of the gateway; where set, the node starts one", shown_default="no gateway; python -m gateway: 8081")
    host: str = variable("127.0.0.1", _text, "address that the gateway binds")
    answer_url: str = variable("", _url("http", "https"), "where nodes reach the gateway", shown_default="http://HOST:PORT")
    timeout_s: float = variable(300.0, _seconds, "how long the gateway waits for an answer, or for the next piece of a stream", name="TIMEOUT", shown_default="5m")
    model_path: str = variable("", _existing_file, "local: a GGUF file, or a llamafile", shown_default="SmolLM2-135M, once ./local.sh has run")
    model_command: str = variable("", _text, "local: a command that serves OpenAI's API; {port} and {model} are filled in")
    local_replicas: int = variable(1, _whole(1, 64), "local: model servers, one child each")
    boot_timeout_s: float = variable(600.0, _seconds, "local: how long a model may take to load")
    connect_timeout_s: float = variable(10.0, _seconds, "to connect to the upstream")
    first_token_timeout_s: float = variable(120.0, _seconds, "from the request sent to the first output of the upstream")
    read_timeout_s: float = variable(60.0, _seconds, "between two pieces of the upstream's output")
    request_ttl_s: float = variable(300.0, _seconds, "a request older than this, from its first publish, is refused rather than computed")
    max_attempts: int = variable(3, _whole(1, 100), "how often a request is tried before it is answered with the error")
    drain_timeout_s: float = variable(8.0, _seconds, "after SIGTERM, how long running requests may take to end")
    on_trouble: str = variable("hold", _choice("hold", "answer"), "when the node can serve nobody: hold gives requests back for other nodes, answer answers with the error")
    ca_bundle: str = variable("", _existing_file, "certificates to trust instead of the system's (PEM)")

    @property
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
            shown = "" if not field.repr else f" (it is {given[:100]!r})"
            mistakes.append(f"{variable_name(field)} {mistake}{shown}")
    for name in ("api_key", "pulsar_token"):
        _read_secret_file(name, values, mistakes)
    mistakes += _conflicts(values, mistakes, gateway_alone)
    if mistakes:
        raise ConfigurationMistakes(mistakes)
    return Settings(**_derived(values, gateway_alone))


def _read_secret_file(name: str, values: dict[str, Any], mistakes: list[str]) -> None:
    path = values.get(f"{name}_file")
    if path is None:
        return
    if name in values:
        mistakes.append(f"{name.upper()} and {name.upper()}_FILE are both set: unset one of them")
        return
    try:
        values[name] = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        mistakes.append(f"{name.upper()}_FILE should be a readable text file: {error}")


def _conflicts(values: Mapping[str, Any], mistakes: list[str], gateway_alone: bool) -> list[str]:
    """What is wrong between variables; a variable that was refused by itself is not complained of twice."""
    refused = {line.split(" ", 1)[0] for line in mistakes}
    found = []
    if "pulsar_url" not in values and "PULSAR_URL" not in refused:
        found.append("PULSAR_URL should be set: the queue's address, like pulsar://localhost:6650")
    if gateway_alone:
        return found
    node_type = values.get("node_type", "demo")
    if node_type != "demo" and "model_name" not in values and "MODEL_NAME" not in refused:
        found.append(f"MODEL_NAME should be set for NODE_TYPE={node_type}: the model's name, and the topic's")
    if node_type == "remote" and "api_url" not in values and "API_URL" not in refused:
        found.append("API_URL should be set for NODE_TYPE=remote: the API's address, like https://api.openai.com")
    if "api_key" in values and not re.fullmatch(r"[\x21-\x7e]+", values["api_key"]):
        found.append("API_KEY should be printable ASCII without blanks: check for a line break or quotes copied along")
    return found


def _derived(values: dict[str, Any], gateway_alone: bool) -> dict[str, Any]:
    values.setdefault("model_name", "static")
    values.setdefault("upstream_model", values["model_name"])
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
    lines = ["# Copy to .env and change what you need; an empty variable is an unset one."]
    for field in dataclasses.fields(Settings):
        lines += ["", f"# {field.metadata['help']}", f"# default: {shown_default(field)}", f"#{variable_name(field)}="]
    return "\n".join(lines) + "\n"


def shown_default(field: dataclasses.Field[Any]) -> str:
    if field.metadata["shown_default"]:
        return str(field.metadata["shown_default"])
    if isinstance(field.default, bool):
        return str(field.default).lower()
    return f"{field.default:g}" if isinstance(field.default, float) else str(field.default or "unset")
