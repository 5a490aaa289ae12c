"""One way to open a Pulsar client: token, TLS, and its log, kept so that a failure can be explained."""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pulsar
from loguru import logger

if TYPE_CHECKING:
    from config import Settings


class PulsarLog(logging.Handler):
    """The client's own log lines. It raises `Timeout` for most causes and names the true one only here."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.recent: deque[str] = deque(maxlen=50)

    def emit(self, record: logging.LogRecord) -> None:
        line = record.getMessage()
        self.recent.append(line)
        logger.debug("pulsar: {}", line)

    def said(self, word: str) -> bool:
        return any(word in line for line in list(self.recent))

    def last_cause(self) -> str:
        """The most telling of the last lines, for a human."""
        causes = [line for line in list(self.recent) if "Failed to establish" in line or "Resolve error" in line or "handshake" in line]
        return causes[-1] if causes else ""


@dataclass(frozen=True)
class QueueTrouble:
    """Pulsar is not to be reached, or refuses us (`refused`: waiting will not help). `message`: for a human."""

    message: str
    refused: bool


def explain(error: Exception, log: PulsarLog, url: str) -> QueueTrouble:
    """What is wrong and what to check, from an exception that says little and the log lines around it."""
    if isinstance(error, pulsar.AuthenticationError | pulsar.AuthorizationError) or log.said("AuthenticationError"):
        return QueueTrouble(f"Pulsar at {url} refuses the token: check PULSAR_TOKEN", refused=True)
    cause = log.last_cause() or str(error)
    return QueueTrouble(f"Pulsar at {url} is not to be reached: {cause}; check PULSAR_URL and that Pulsar runs", refused=False)


def open_client(settings: Settings, log: PulsarLog, *, operation_timeout_s: int = 30) -> pulsar.Client:
    """A client of `settings.pulsar_url`. Nothing is connected before the first producer or consumer."""
    own_logger = logging.Logger("pulsar")  # not registered by name: two clients of one process keep their lines apart
    own_logger.addHandler(log)
    return pulsar.Client(
        settings.pulsar_url,
        authentication=pulsar.AuthenticationToken(settings.pulsar_token) if settings.pulsar_token else None,
        operation_timeout_seconds=operation_timeout_s,
        connection_timeout_ms=5000,
        tls_trust_certs_file_path=settings.ca_bundle or None,
        tls_validate_hostname=True,
        logger=own_logger,
    )
