"""The two brokers that the acceptance tests run on: where the embedded one differs from the real one, it is wrong."""

from __future__ import annotations

from tests.real.embedded_broker import EmbeddedBroker
from tests.real.pulsar_server import PulsarServer

Broker = PulsarServer | EmbeddedBroker
BROKERS: dict[str, type[PulsarServer] | type[EmbeddedBroker]] = {"pulsar": PulsarServer, "embedded": EmbeddedBroker}
