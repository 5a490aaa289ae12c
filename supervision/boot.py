"""Before all else of the node: its first children are started, and boot while the supervisor itself still imports."""

from __future__ import annotations

import random
import selectors
from dataclasses import dataclass
from typing import TYPE_CHECKING

from supervision.children import Crew
from supervision.embedded import with_broker
from supervision.notify import Notifier
from supervision.roles import child_count, roles

if TYPE_CHECKING:
    from config import Settings

FIRST_ALONE_S = 1.0


@dataclass(frozen=True)
class Booted:
    """settings: as given, or those of a node that brings its own queue; `selector` wakes for what the crew says; notifier: made
    before the first child, which would inherit what systemd told this process alone."""

    settings: Settings
    has_broker: bool
    crew: Crew
    selector: selectors.BaseSelector
    notifier: Notifier


def boot(settings: Settings) -> Booted:
    """Of what the node needs it imports only what starts children."""
    options = None
    if not settings.pulsar_url:
        settings, options = with_broker(settings)
    selector, notifier = selectors.DefaultSelector(), Notifier()
    crew = Crew(
        roles(settings, options), selector, random.Random(),
        at_work=child_count(settings), memory_limit_bytes=settings.child_memory_limit_mb << 20,
    )  # fmt: skip
    crew.start_first(FIRST_ALONE_S)
    return Booted(settings, options is not None, crew, selector, notifier)
