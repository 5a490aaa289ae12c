"""`--check`: is what the environment names really there? Says what was found, one line each."""

from __future__ import annotations

import urllib3

from backends.api import completions_url
from config import Settings
from errors import ExitCode
from messaging.admin import AdminSilent, PulsarAdmin
from messaging.handshake import find_trouble
from messaging.topics import request_topic

_TIMEOUT_S = 10


def check(settings: Settings) -> int:
    """Prints `ok`, `warning` or `wrong` lines; 0 where nothing is wrong, else 78."""
    findings = [("ok", "configuration is valid"), *_queue(settings), *_records(settings), *_upstream(settings)]
    for grade, words in findings:
        print(f"{grade + ':':<9}{words}")
    return ExitCode.CONFIGURATION if any(grade == "wrong" for grade, _ in findings) else ExitCode.OK


def _queue(settings: Settings) -> list[tuple[str, str]]:
    if not settings.pulsar_url:
        return [("ok", "the embedded broker will be started, for this machine alone")]
    trouble = find_trouble(settings)
    if trouble is not None:
        return [("wrong", trouble.message)]
    return [("ok", f"Pulsar at {settings.pulsar_url} answers; requests are read from {request_topic(settings.model_name)}")]


def _records(settings: Settings) -> list[tuple[str, str]]:
    """A topic without a subscription forgets: usage records that nobody subscribed to are gone in minutes."""
    if not settings.pulsar_admin_url:
        return []
    admin = PulsarAdmin(settings.pulsar_admin_url, settings.pulsar_token, settings.ca_bundle, _TIMEOUT_S)
    try:
        subscriptions = admin.subscriptions(settings.res_topic_name)
    except AdminSilent as why:
        return [("warning", f"PULSAR_ADMIN_URL {settings.pulsar_admin_url} gives no usable answer: {why}")]
    if subscriptions:
        return [("ok", f"usage records go to {settings.res_topic_name}, read by {', '.join(subscriptions)}")]
    return [("warning", f"nothing subscribes to {settings.res_topic_name}: usage records will be forgotten (create a subscription first)")]


def _upstream(settings: Settings) -> list[tuple[str, str]]:
    if settings.node_type == "remote":
        return [_api(settings)]
    if settings.node_type == "local":
        return [_model(settings)]
    return [("ok", "the demo needs no upstream")]


def _api(settings: Settings) -> tuple[str, str]:
    url = completions_url(settings.api_url).removesuffix("/chat/completions") + "/models"
    headers = {"Authorization": f"Bearer {settings.api_key}"} if settings.api_key else {}
    pool = urllib3.PoolManager(ca_certs=settings.ca_bundle or None)
    try:
        status = pool.request("GET", url, headers=headers, timeout=_TIMEOUT_S, retries=False, redirect=False).status
    except urllib3.exceptions.HTTPError as error:
        return ("wrong", f"API_URL {settings.api_url} is not to be reached: {error}")
    if status in (401, 403):
        return ("wrong", f"{url} refuses the key (status {status}): check API_KEY")
    return ("ok", f"{url} answers (status {status})")


def _model(settings: Settings) -> tuple[str, str]:
    from backends import engine

    try:
        return ("ok", f"the model is {engine.choose(settings, replica=0).name}")
    except engine.ModelServerFailed as failed:
        return ("wrong", failed.message)
