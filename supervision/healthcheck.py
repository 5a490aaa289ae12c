"""`python -m supervision.healthcheck [PATH]`: asks the node, or the gateway, in the same container how it is. For Docker's
HEALTHCHECK, as the image holds no curl. PATH: /readyz, or /livez. Exit code 0 or 1, and why."""

from __future__ import annotations

import http.client
import sys

import psutil

import config

_TIMEOUT_S = 4.0


def main(arguments: list[str]) -> int:
    settings = config.load()
    if settings.status_port and _is_ours(settings.status_port):
        return _ask(settings.status_host, settings.status_port, *(arguments or ["/readyz"]))
    if settings.port and _is_ours(settings.port):  # python -m gateway
        return _ask(settings.host, settings.port, "/health")
    print(f"nothing of this container listens on STATUS_PORT {settings.status_port}: not started yet, or the port is taken")
    return 1


def _is_ours(port: int) -> bool:
    """On the host's network another node may listen there; whose process cannot be seen from here is another's."""
    return any(found.laddr and found.laddr.port == port and found.status == psutil.CONN_LISTEN and found.pid
               for found in psutil.net_connections("tcp"))  # fmt: skip


def _ask(host: str, port: int, path: str) -> int:
    connection = http.client.HTTPConnection({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), port, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        print(response.status, response.read().decode("utf-8", "replace"))
    except OSError as error:
        print(f"{path} does not answer: {error}")
        return 1
    return 0 if response.status == http.client.OK else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
