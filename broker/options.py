"""What a broker is told at its start. Apart from server.py, as a supervisor that only passes them on need not load a broker."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Options:
    """Ports: 0 for a free one. `token`: what clients and admin requests must bring; empty for none."""

    data: Path
    host: str = "127.0.0.1"
    port: int = 6650
    admin_port: int = 8080
    token: str = field(default="", repr=False)
    max_connections: int = 1000
