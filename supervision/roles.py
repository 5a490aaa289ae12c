"""Which children a node has, by its settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from limits.cpu import usable_cores
from supervision import services
from supervision.children import BOOT_WITHIN_S, Role

if TYPE_CHECKING:
    from broker.options import Options
    from config import Settings

GATEWAY, BROKER = "gateway", "broker"
ENOUGH_PER_CHILD = 128  # more children than these need only cost memory and wake-ups
MOST_PER_CHILD = 512  # a child that dies takes all of them along to another attempt


def roles(settings: Settings, broker: Options | None) -> list[Role]:
    """The children that these settings ask for, in the order of their start."""
    count = child_count(settings)
    room = -(-settings.max_process_num // count)
    found = [Role(BROKER, services.broker, (settings, broker), 0)] if broker else []
    spares = 0 if settings.node_type == "local" else 1  # a model server more would take what the others need
    found += [backend_role(settings, number, room) for number in range(count + spares)]
    return found + ([Role(GATEWAY, services.gateway, (settings,), 0)] if settings.port else [])


def backend_role(settings: Settings, number: int, room: int) -> Role:
    boot_s = BOOT_WITHIN_S + (settings.boot_timeout_s if settings.node_type == "local" else 0.0)
    return Role(f"backend {number}", services.backend, (settings, number, room), room, boot_s)


def child_count(settings: Settings) -> int:
    """Local: one for each model server. Otherwise, unless told: two, as far as there are cores more for each 128 requests, and
    one for each 512 at least."""
    most = settings.max_process_num
    if settings.node_type == "local":
        return settings.local_replicas
    useful = min(usable_cores(), max(2, -(-most // ENOUGH_PER_CHILD)))
    return min(settings.backend_processes or max(useful, -(-most // MOST_PER_CHILD)), most)
