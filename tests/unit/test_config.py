"""The environment: what each variable takes, what it says when it is wrong, and that no secret is ever shown."""

from __future__ import annotations

import dataclasses
import os
import pickle
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import config
import config_docs
from config import ConfigurationMistakes, Settings, load

ROOT = Path(__file__).parents[2]
QUEUE = {"PULSAR_URL": "pulsar://localhost:6650"}
FIELDS = {config.variable_name(field): field for field in dataclasses.fields(Settings)}


def loaded(**variables: str) -> Settings:
    return load(QUEUE | variables)


def mistakes(variables: Mapping[str, str], **options: bool) -> list[str]:
    with pytest.raises(ConfigurationMistakes) as caught:
        load(variables, **options)
    return caught.value.mistakes


def test_the_contracts_variables_and_defaults() -> None:
    settings = loaded()
    assert (settings.node_type, settings.model_name, settings.upstream_model) == ("demo", "static", "static")
    assert (settings.max_process_num, settings.res_topic_name, settings.debug) == (128, "res-topic", False)
    assert (settings.request_ttl_s, settings.max_attempts, settings.drain_timeout_s) == (300, 3, 8)
    assert (settings.timeout_s, settings.on_trouble, settings.host, settings.port) == (300, "hold", "127.0.0.1", 0)
    contract = """NODE_TYPE MODEL_NAME API_URL API_KEY MAX_PROCESS_NUM PULSAR_URL PULSAR_TOKEN RES_TOPIC_NAME DEBUG AIMODEL_NAME
        AIMODEL_NAMESPACE PORT TIMEOUT HOST ANSWER_URL PULSAR_ADMIN_URL UPSTREAM_MODEL MODEL_PATH MODEL_COMMAND BACKEND_PROCESSES
        LOCAL_REPLICAS CONNECT_TIMEOUT_S FIRST_TOKEN_TIMEOUT_S READ_TIMEOUT_S REQUEST_TTL_S MAX_ATTEMPTS DRAIN_TIMEOUT_S ON_TROUBLE
        CA_BUNDLE API_KEY_FILE PULSAR_TOKEN_FILE LOG_FORMAT STATE_DIR CHILD_MEMORY_LIMIT_MB STATUS_PORT RATE_LIMIT_RPM
        RATE_LIMIT_TPM"""
    assert set(contract.split()) <= FIELDS.keys()


def test_a_gateway_by_itself_needs_no_model() -> None:
    settings = load(QUEUE | {"NODE_TYPE": "remote"}, gateway_alone=True)
    assert settings.port == 8081
    assert load(QUEUE | {"PORT": "9000"}, gateway_alone=True).port == 9000


NAME, URL = "model_name", "api_url"
GOOD: list[tuple[str, str, Any]] = [
    ("NODE_TYPE", "local", "local"), ("NODE_TYPE", "Demo", "demo"),
    ("MODEL_NAME", "llama3:8b", "llama3:8b"), ("MODEL_NAME", " m ", "m"),
    ("API_URL", "https://api.openai.com", "https://api.openai.com"), ("API_URL", "HTTP://h:1/v1/", "http://h:1/v1"),
    ("API_URL", "http://[::1]:80/v1/chat/completions?v=1", "http://[::1]:80/v1/chat/completions?v=1"),
    ("API_KEY", "sk-a", "sk-a"), ("PULSAR_TOKEN", "eyJ.a.b", "eyJ.a.b"), ("UPSTREAM_MODEL", "meta/llama", "meta/llama"),
    ("MAX_PROCESS_NUM", "1", 1), ("MAX_PROCESS_NUM", "65536", 65536), ("BACKEND_PROCESSES", "2", 2),
    ("PULSAR_URL", "pulsar://a:6650,b:6650", "pulsar://a:6650,b:6650"), ("PULSAR_URL", "pulsar+ssl://a/", "pulsar+ssl://a"),
    ("PULSAR_ADMIN_URL", "http://a:8080", "http://a:8080"), ("RES_TOPIC_NAME", "r", "r"), ("STATE_DIR", "/var/lib/w", "/var/lib/w"),
    ("DEBUG", "true", True), ("DEBUG", "False", False), ("DEBUG", "1", True), ("DEBUG", "off", False),
    ("LOG_FORMAT", "json", "json"), ("AIMODEL_NAME", "a", "a"), ("AIMODEL_NAMESPACE", "n", "n"),
    ("PORT", "8081", 8081), ("HOST", "0.0.0.0", "0.0.0.0"), ("HOST", "::", "::"), ("ANSWER_URL", "http://h:1", "http://h:1"),
    ("TIMEOUT", "5m", 300), ("TIMEOUT", "1h30m", 5400), ("MODEL_COMMAND", "serve {port}", "serve {port}"), ("LOCAL_REPLICAS", "2", 2),
    ("BOOT_TIMEOUT_S", "60", 60), ("CONNECT_TIMEOUT_S", "0.5", 0.5), ("FIRST_TOKEN_TIMEOUT_S", "500ms", 0.5),
    ("READ_TIMEOUT_S", "1.5s", 1.5), ("REQUEST_TTL_S", "10", 10), ("MAX_ATTEMPTS", "1", 1), ("DRAIN_TIMEOUT_S", "20", 20),
    ("ON_TROUBLE", "answer", "answer"), ("CHILD_MEMORY_LIMIT_MB", "512", 512), ("STATUS_PORT", "9090", 9090), ("ALLOW_KILL", "true", True),
    ("STATUS_HOST", "0.0.0.0", "0.0.0.0"), ("CREDENTIALS_DIRECTORY", "/run/credentials/x", "/run/credentials/x"),
    ("RECHECK_S", "5m", 300), ("KUBERNETES_SERVICE_HOST", "10.0.0.1", "10.0.0.1"),
    ("GPU_IDS", "0, 1", ("0", "1")), ("GPU_IDS", "GPU-5f-a", ("GPU-5f-a",)), ("LOCAL_ADAPTIVE", "false", False),
    ("LOCAL_MEMORY_RESERVE_PERCENT", "10", 0.1), ("LOCAL_MEMORY_STALL_PERCENT", "2.5%", 0.025), ("LOCAL_OTHERS_CPU_PERCENT", "50", 0.5),
    ("LOCAL_GAIN_PERCENT", "5", 0.05), ("GENERATION_TIMEOUT_S", "20m", 1200),
    ("RATE_LIMIT_RPM", "600", 600), ("RATE_LIMIT_TPM", "90000", 90000),
    ("MAX_PENDING", "10", 10),
    ("ALLOWED_ENDPOINTS", "*.svc.local, 10.0.0.0/8:8081", "*.svc.local, 10.0.0.0/8:8081"), ("ALLOWED_ENDPOINTS", "::1", "::1"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "given", "value"), GOOD)
def test_a_good_value(name: str, given: str, value: Any) -> None:
    assert getattr(loaded(**{"MODEL_NAME": "m", name: given}), FIELDS[name].name) == value


WHOLE = ["0", "-1", "+1", "1.5", "x", "999999999", "9" * 5000, "1_0", "²", "٣"]
DURATION = ["0", "-1", "x", "5 m", "1m30", "m", "1e3", "9" * 400, "inf", "nan", "٣", "1.s", "5M"]
PERCENT = ["0", "101", "-1", "x", "0.05.1", "5 %", "٣"]
ADDRESS = ["localhost", "ftp://h", "http://", "http://h:x", "http://h:0", "http://h:99999", "http://[::1", "http://a b", "http:///v1"]
BAD: dict[str, list[str]] = {
    "NODE_TYPE": ["x", "remote,local"],
    "MODEL_NAME": ["meta/llama", "/", "a b", "m" * 201],
    "API_URL": [*ADDRESS, "http://u:p@h"],
    "API_KEY": ["two words", "line\nbreak", "schlüssel", '"sk-1"'],
    "API_KEY_FILE": ["/nowhere", "/tmp", "~nobody-knows/x", "n" * 5000],
    "MAX_PROCESS_NUM": [*WHOLE, "65537"],
    "BACKEND_PROCESSES": WHOLE,
    "PULSAR_URL": ["localhost:6650", "http://h", "pulsar://", "pulsar://a:x", "pulsar://a:1,b:x", "pulsar://a:1,", "pulsar://a b"],
    "PULSAR_TOKEN": ["a b", "'a'"],
    "PULSAR_TOKEN_FILE": ["/nowhere"],
    "PULSAR_ADMIN_URL": ADDRESS,
    "RES_TOPIC_NAME": ["a/b", "a b"],
    "STATE_DIR": ["/dev/null"],
    "DEBUG": ["maybe", "2"],
    "LOG_FORMAT": ["xml"],
    "PORT": [*WHOLE, "65536"],
    "HOST": ["http://h", "a b"],
    "ANSWER_URL": ADDRESS,
    "TIMEOUT": DURATION,
    "MODEL_PATH": ["/nowhere"],
    "LOCAL_REPLICAS": WHOLE,
    "GPU_IDS": ["x", "0,,1", "0;1", "-1", "0,0", "GPU-a b"],
    "LOCAL_ADAPTIVE": ["maybe"],
    **dict.fromkeys((f"LOCAL_{name}_PERCENT" for name in ("MEMORY_RESERVE", "MEMORY_STALL", "OTHERS_CPU", "GAIN")), PERCENT),
    "GENERATION_TIMEOUT_S": DURATION,
    "BOOT_TIMEOUT_S": DURATION,
    "CONNECT_TIMEOUT_S": DURATION,
    "FIRST_TOKEN_TIMEOUT_S": DURATION,
    "READ_TIMEOUT_S": DURATION,
    "REQUEST_TTL_S": DURATION,
    "MAX_ATTEMPTS": [*WHOLE, "101"],
    "DRAIN_TIMEOUT_S": DURATION,
    "RECHECK_S": DURATION,
    "CHILD_MEMORY_LIMIT_MB": [*WHOLE, "63"],
    "STATUS_PORT": [*WHOLE, "65536"],
    "STATUS_HOST": ["http://h", "a b"],
    "ALLOW_KILL": ["maybe", "2"],
    "RATE_LIMIT_RPM": WHOLE,
    "RATE_LIMIT_TPM": WHOLE,
    "ON_TROUBLE": ["x"],
    "CA_BUNDLE": ["/nowhere"],
    "MAX_PENDING": WHOLE,
    "GATEWAY_API_KEYS_FILE": ["/nowhere", "/dev/null"],
    "ALLOWED_ENDPOINTS": ["http://h", "h:0", "h:99999", "10.0.0.0/99", "[gw]:1"],
}
FREE = {"UPSTREAM_MODEL", "AIMODEL_NAME", "AIMODEL_NAMESPACE", "MODEL_COMMAND", "KUBERNETES_SERVICE_HOST", "CREDENTIALS_DIRECTORY"}


def test_every_variable_has_its_good_and_bad_values() -> None:
    files = {"API_KEY_FILE", "PULSAR_TOKEN_FILE", "MODEL_PATH", "CA_BUNDLE", "GATEWAY_API_KEYS_FILE"}
    assert {name for name, _, _ in GOOD} | files == FIELDS.keys()
    assert BAD.keys() | FREE == FIELDS.keys()


@pytest.mark.parametrize(("name", "given"), [(name, value) for name, values in BAD.items() for value in values])
def test_a_bad_value_names_its_variable_and_what_it_should_be(name: str, given: str) -> None:
    (mistake,) = mistakes(QUEUE | {name: given})
    assert mistake.startswith(f"{name} should ")
    assert len(mistake) < 400 and "\n" not in mistake


def test_a_slash_in_the_model_name_says_what_to_do() -> None:
    (mistake,) = mistakes(QUEUE | {"MODEL_NAME": "meta-llama/Llama-3"})
    assert "MODEL_NAME=Llama-3 and UPSTREAM_MODEL=meta-llama/Llama-3" in mistake
    settings = loaded(MODEL_NAME="Llama-3", UPSTREAM_MODEL="meta-llama/Llama-3")
    assert (settings.model_name, settings.upstream_model) == ("Llama-3", "meta-llama/Llama-3")


def test_all_mistakes_at_once() -> None:
    found = mistakes({"NODE_TYPE": "x", "PORT": "0", "TIMEOUT": "never", "API_KEY": "a b"})
    assert [line.split()[0] for line in found] == ["NODE_TYPE", "PORT", "TIMEOUT", "API_KEY"]


def test_what_a_node_type_needs() -> None:
    assert [line.split()[0] for line in mistakes({"NODE_TYPE": "remote"})] == ["MODEL_NAME", "API_URL"]
    assert [line.split()[0] for line in mistakes(QUEUE | {"NODE_TYPE": "local"})] == ["MODEL_NAME"]
    # what was refused by itself is not called missing as well
    assert len(mistakes({"NODE_TYPE": "remote", "MODEL_NAME": "a/b", "API_URL": "x", "PULSAR_URL": "y"})) == 3
    remote = loaded(NODE_TYPE="api", MODEL_NAME="m", API_URL="https://h")
    assert (remote.node_type, remote.api_key, remote.upstream_model) == ("remote", "", "m")


def test_where_the_embedded_broker_cannot_serve_a_queue_must_be_named() -> None:
    assert load({}).pulsar_url == ""
    assert [line.split()[0] for line in mistakes({}, gateway_alone=True)] == ["PULSAR_URL"]
    for variable in ("KUBERNETES_SERVICE_HOST", "AIMODEL_NAME"):
        assert [line.split()[0] for line in mistakes({variable: "x"})] == ["PULSAR_URL"]
        assert load({variable: "x"} | QUEUE).pulsar_url


def test_an_empty_variable_is_an_unset_one() -> None:
    assert load({name: " " for name in FIELDS} | QUEUE) == loaded()


def test_secrets_from_files(tmp_path: Path) -> None:
    key, token = tmp_path / "key", tmp_path / "token"
    key.write_text("sk-of-the-file\n")
    token.write_text("  a-long-token\n")
    settings = loaded(API_KEY_FILE=str(key), PULSAR_TOKEN_FILE=str(token))
    assert (settings.api_key, settings.pulsar_token) == ("sk-of-the-file", "a-long-token")
    assert settings.secrets == ("sk-of-the-file", "a-long-token")
    (both,) = mistakes(QUEUE | {"API_KEY_FILE": str(key), "API_KEY": "k"})
    assert both.startswith("API_KEY and API_KEY_FILE are both set")


def test_secrets_from_systemds_credentials(tmp_path: Path) -> None:
    (tmp_path / "api-key").write_text("sk-of-systemd\n")
    found = loaded(CREDENTIALS_DIRECTORY=str(tmp_path))
    assert (found.api_key, found.pulsar_token, found.pulsar_token_file) == ("sk-of-systemd", "", "")
    (tmp_path / "pulsar-token").write_text("token-of-systemd")
    assert loaded(CREDENTIALS_DIRECTORY=str(tmp_path)).pulsar_token_file == str(tmp_path / "pulsar-token")
    (tmp_path / "other").write_text("sk-of-the-file")
    for own in ({"API_KEY": "sk-of-the-file"}, {"API_KEY_FILE": str(tmp_path / "other")}):
        assert loaded(CREDENTIALS_DIRECTORY=str(tmp_path), **own).api_key == "sk-of-the-file"


@pytest.mark.parametrize("content", [b"", b"\n", b"two\nlines", b"a b", b"\xff\xfe", b'"quoted"'])
def test_a_file_that_holds_no_secret(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    (mistake,) = mistakes(QUEUE | {"API_KEY_FILE": str(path)})
    assert mistake.startswith("API_KEY_FILE should hold ")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_nobody_may_read(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.touch(mode=0)
    assert mistakes(QUEUE | {"API_KEY_FILE": str(path)})[0].startswith("API_KEY_FILE should be the path of a file that can be read")


def test_secrets_are_never_shown(tmp_path: Path) -> None:
    secret = "s3cret-0123456789"
    path = tmp_path / "key"
    path.write_text(f"{secret} {secret}")
    attempts = [
        {"API_KEY": f"{secret} x"}, {"PULSAR_TOKEN": f"{secret}\nx"}, {"API_KEY_FILE": secret}, {"PULSAR_TOKEN_FILE": f"/x/{secret}"},
        {"API_KEY_FILE": str(path)}, {"API_URL": f"https://user:{secret}@host"}, {"PULSAR_URL": f"pulsar://user:{secret}@host"},
        {"PORT": f"sk-{secret}"}, {"API_URL": f"https://user:{'x' * 100}{secret}@host"},
    ]  # fmt: skip
    for variables in attempts:
        assert secret not in "\n".join(mistakes(QUEUE | variables))
    settings = loaded(API_KEY=secret, PULSAR_TOKEN=secret + "2")
    assert secret not in repr(settings) and secret not in str(settings)
    assert settings.secrets == (secret, secret + "2")
    assert loaded(API_KEY="short").secrets == ()
    assert set(config.SECRET_VARIABLES) == {name for name, field in FIELDS.items() if not field.repr}


def test_settings_travel_to_a_spawned_child() -> None:
    settings = loaded(API_KEY="sk-1")
    assert pickle.loads(pickle.dumps(settings)) == settings
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.port = 1  # type: ignore[misc]


def test_the_texts_list_every_variable() -> None:
    helped, example = config.help_text().splitlines(), config.env_example().splitlines()
    assert [line.split()[0] for line in helped] == list(FIELDS)
    assert [line for line in example if line.startswith("#") and line.endswith("=")] == [f"#{name}=" for name in FIELDS]
    shown = {name: config.shown_default(field) for name, field in FIELDS.items()}
    assert (shown["MAX_PROCESS_NUM"], shown["TIMEOUT"], shown["DEBUG"], shown["API_KEY"]) == ("128", "5m", "false", "unset")
    assert (shown["CONNECT_TIMEOUT_S"], shown["MODEL_NAME"]) == ("10", "static, for the demo")


def test_the_defaults_that_are_shown_can_be_set() -> None:
    for name, field in FIELDS.items():
        if field.metadata["shown_default"] is None and field.default:
            assert getattr(loaded(**{name: config.shown_default(field)}), field.name) == field.default


def test_env_example_is_what_the_settings_say() -> None:
    assert (ROOT / ".env.example").read_text(encoding="utf-8") == config.env_example(), "python supervisor.py --env-example > .env.example"


def test_the_readme_shows_what_the_settings_say() -> None:
    assert config.readme_table() in (ROOT / "README.md").read_text(encoding="utf-8"), config.readme_table()


def test_the_documentation_says_what_the_settings_say() -> None:
    assert (ROOT / "docs/configuration.md").read_text(encoding="utf-8") == config_docs.text(), "python -m config_docs"
    assert config_docs.text().count("\n### `") == len(FIELDS)


def test_env_example_can_be_sourced() -> None:
    done = subprocess.run(["bash", "-uec", "set -a; . ./.env.example"], cwd=ROOT, capture_output=True, check=True)
    assert not done.stdout + done.stderr


def test_the_environment_of_the_process_is_read_where_none_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PULSAR_URL", "pulsar://from-the-environment")
    assert load().pulsar_url == "pulsar://from-the-environment"


def test_importing_the_configuration_is_light() -> None:
    """Each child does it."""
    script = "import sys, config; print(*(m for m in ('pulsar', 'urllib3', 'loguru') if m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, check=True, text=True).stdout.strip() == ""


@given(st.dictionaries(st.sampled_from(sorted(FIELDS)), st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))))
def test_any_environment_is_taken_or_named(variables: dict[str, str]) -> None:
    try:
        load(variables)
    except ConfigurationMistakes as refused:
        assert all(line.split()[0] in FIELDS for line in refused.mistakes)
