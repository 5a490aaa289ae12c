"""`python -m supervision.healthcheck [PATH]`: asks what runs in the same container how it is, as an image holds no curl.
PATH: /readyz, which is the default, or /livez, of the node; /health, of the gateway. Exit code 0 or 1, and why."""

from __future__ import annotations

import http.client
import sys

import psutil

import config

_TIMEOUT_S = 4.0


def main(arguments: list[str]) -> int:
    path, settings = arguments[0] if arguments else "/readyz", config.load()
    name, host, port = "STATUS_PORT", settings.status_host, settings.status_port
    if path == "/health":
        name, host, port = "PORT", settings.host, settings.port
    if not _is_ours(port):
        print(f"nothing of this container listens on {name} {port}: not started yet, or the port is taken")
        return 1
    return _ask(host, port, path)


def _is_ours(port: int) -> bool:
    """On the host's network another node may listen there; whose process cannot be seen from here is another's."""
    listening = (found for found in psutil.net_connections("tcp") if found.status == psutil.CONN_LISTEN)
    return any(found.laddr and found.laddr.port == port and found.pid for found in listening)


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
