"""How many requests wait in the queue, asked of Pulsar's admin address now and then."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from loguru import logger

from messaging.topics import request_topic, subscription

if TYPE_CHECKING:
    from config import Settings

ASKED_EACH_S, SILENT_FOR_S = 10.0, 1.0


class Backlog:
    """`count`: None where there is no PULSAR_ADMIN_URL, or it gives no answer. What nodes have and have not acknowledged
    yet is counted too, as Pulsar counts it."""

    def __init__(self, settings: Settings) -> None:
        self.count: int | None = None
        self._settings = settings

    def watch(self) -> None:
        if self._settings.pulsar_admin_url:
            threading.Thread(target=self._watch, name="backlog", daemon=True).start()

    def _watch(self) -> None:
        from messaging.admin import AdminSilent, PulsarAdmin

        settings = self._settings
        admin = PulsarAdmin(settings.pulsar_admin_url, settings.pulsar_token, settings.ca_bundle)
        topic, name = request_topic(settings.model_name), subscription(settings.model_name)
        while True:
            try:
                self.count = admin.backlog(topic, name)
            except AdminSilent as silent:
                self.count = None
                logger.debug("the backlog is not known: {}", silent)
            time.sleep(ASKED_EACH_S if self.count is not None else SILENT_FOR_S)
