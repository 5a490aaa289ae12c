"""All in one: where no PULSAR_URL names a queue, the node brings its own broker, and a gateway to reach it through."""

from __future__ import annotations

import dataclasses
import socket
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from broker.options import Options
    from config import Settings

HOST = "127.0.0.1"
PORT, ADMIN_PORT = 6650, 8080  # Pulsar's own, where they are free
GATEWAY_PORT = 8081
STATE = Path(__file__).resolve().parent.parent / "state"


def with_broker(settings: Settings) -> tuple[Settings, Options]:
    """The settings of a node whose queue is the embedded broker, and the broker's options. The ports are chosen here, as
    a broker that is replaced must be found where the first one was."""
    from broker.options import Options

    port, admin_port = _free_port(PORT), _free_port(ADMIN_PORT)
    folder = Path(settings.state_dir) if settings.state_dir else STATE
    options = Options(data=folder / "broker", host=HOST, port=port, admin_port=admin_port, token=settings.pulsar_token)
    whole = dataclasses.replace(
        settings,
        pulsar_url=f"pulsar://{HOST}:{port}",
        state_dir=str(folder),
        pulsar_admin_url=f"http://{HOST}:{admin_port}",
        port=settings.port or GATEWAY_PORT,
        on_trouble="answer",  # there is no other node that requests could be held for
    )
    return whole, options


def _free_port(wanted: int) -> int:
    for port in (wanted, 0):
        try:
            with socket.create_server((HOST, port)) as probe:
                found: int = probe.getsockname()[1]
                return found
        except OSError:
            continue
    raise RuntimeError(f"{HOST} has no free port")
