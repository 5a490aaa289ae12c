"""The few questions of Pulsar's REST administration that tools ask, answered in its shapes. Reading only.

HTTP/1.1 by hand: a request is a head of a few lines without a body, an answer a short JSON text.
"""

from __future__ import annotations

import asyncio
import hmac
import json
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote, urlsplit

from loguru import logger

from broker.subscriptions import Consumer
from broker.topics import NAMESPACE, PREFIX, Attached, Producer, Topic, Topics

CLUSTER = "standalone"
MAX_HEAD_BYTES = 16 * 1024
MAX_CONNECTIONS = 64
IDLE_S = 60.0
_TENANT, _LOCAL = NAMESPACE.split("/")


class _Problem(Exception):
    """An answer other than 200."""

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


class Admin:
    """`token`: what a request must bring as its bearer token, empty for none."""

    def __init__(self, topics: Topics, token: str) -> None:
        self._topics, self._token = topics, token
        self._open = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, for asyncio.start_server."""
        self._open += 1
        try:
            while self._open <= MAX_CONNECTIONS and await self._serve_one(reader, writer):
                pass
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # it left, was silent, or sent no HTTP
        except asyncio.CancelledError:
            return  # the broker ends: asyncio's own callback would complain of a task that ended so
        finally:
            self._open -= 1
            writer.close()

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """False: the connection ends."""
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), IDLE_S)
        request, headers = _parse(head)
        status, answer = self._answer(request, headers)
        keep = "close" not in headers.get("connection", "").lower() and not {"content-length", "transfer-encoding"} & headers.keys()
        writer.write(_response(status, answer, keep))
        await asyncio.wait_for(writer.drain(), IDLE_S)
        return keep

    def _answer(self, request: list[str], headers: dict[str, str]) -> tuple[HTTPStatus, Any]:
        try:
            if len(request) != 3 or not request[2].startswith("HTTP/1."):
                raise _Problem(HTTPStatus.BAD_REQUEST, "Bad Request")
            self._authorize(headers.get("authorization", ""))
            if request[0] != "GET":
                raise _Problem(HTTPStatus.METHOD_NOT_ALLOWED, "Method Not Allowed")
            return HTTPStatus.OK, self._find(urlsplit(request[1]).path)
        except _Problem as problem:
            return problem.status, {"reason": problem.reason}
        except Exception:
            logger.exception("an admin request failed")
            return HTTPStatus.INTERNAL_SERVER_ERROR, {"reason": "Internal Server Error"}

    def _authorize(self, authorization: str) -> None:
        expected = f"Bearer {self._token}"
        if self._token and not hmac.compare_digest(authorization.encode(errors="replace"), expected.encode()):
            raise _Problem(HTTPStatus.UNAUTHORIZED, "Authentication required")

    def _find(self, path: str) -> Any:
        segments = [unquote(segment) for segment in path.rstrip("/").split("/")[1:]]
        match segments:
            case ["admin", "v2", *rest]:
                return self._resource(rest)
        raise _Problem(HTTPStatus.NOT_FOUND, "Not Found")

    def _resource(self, segments: list[str]) -> Any:
        match segments:
            case ["clusters"]:
                return [CLUSTER]
            case ["tenants"]:
                return [_TENANT]
            case ["brokers", "health"]:
                return "ok"
            case ["namespaces", tenant]:
                if tenant != _TENANT:
                    raise _Problem(HTTPStatus.NOT_FOUND, "Tenant not found")
                return [NAMESPACE]
            case ["persistent", tenant, namespace, *rest]:
                if f"{tenant}/{namespace}" != NAMESPACE:
                    raise _Problem(HTTPStatus.NOT_FOUND, "Namespace not found")
                return self._topic_resource(rest)
        raise _Problem(HTTPStatus.NOT_FOUND, "Not Found")

    def _topic_resource(self, segments: list[str]) -> Any:
        match segments:
            case []:
                return self._topics.names()
            case ["partitioned"]:
                return []
            case [name, "subscriptions"]:
                return [attached for attached in self._topic(name).attached]
            case [name, "stats"]:
                return topic_stats(self._topic(name))
        raise _Problem(HTTPStatus.NOT_FOUND, "Not Found")

    def _topic(self, local: str) -> Topic:
        topic = self._topics.find(PREFIX + local)
        if topic is None:
            raise _Problem(HTTPStatus.NOT_FOUND, f"Topic {PREFIX}{local} not found")
        return topic


def topic_stats(topic: Topic) -> dict[str, Any]:
    """The fields of Pulsar's TopicStats that this broker knows. Counters are since its start."""
    counters = topic.counters
    return {
        "msgInCounter": counters.messages_in,
        "bytesInCounter": counters.bytes_in,
        "msgOutCounter": counters.messages_out,
        "bytesOutCounter": counters.bytes_out,
        "publishers": [_publisher(producer) for producer in topic.producers.values()],
        "subscriptions": {name: _subscription(attached) for name, attached in topic.attached.items()},
        "deduplicationStatus": "Disabled",
    }


def _publisher(producer: Producer) -> dict[str, Any]:
    return {
        "accessMode": "Shared",
        "producerId": producer.producer_id,
        "producerName": producer.name,
        "address": producer.address,
        "connectedSince": _utc(producer.connected_at_s),
        "clientVersion": producer.client_version,
    }


def _subscription(attached: Attached) -> dict[str, Any]:
    subscription = attached.subscription
    backlog = subscription.backlog
    return {
        "msgBacklog": backlog,
        "msgBacklogNoDelayed": backlog - subscription.delayed,
        "msgDelayed": subscription.delayed,
        "unackedMessages": sum(consumer.unacked_messages for consumer in subscription.consumers),
        "msgOutCounter": subscription.delivered_messages,
        "bytesOutCounter": subscription.delivered_bytes,
        "type": "Shared" if subscription.shared else "Exclusive",
        "consumers": [_consumer(consumer) for consumer in subscription.consumers],
        "isDurable": attached.durable,
        "durable": attached.durable,
        "isReplicated": False,
        "replicated": False,
    }


def _consumer(consumer: Consumer) -> dict[str, Any]:
    return {
        "consumerName": consumer.name,
        "availablePermits": consumer.permits,
        "unackedMessages": consumer.unacked_messages,
        "msgOutCounter": consumer.delivered_messages,
        "bytesOutCounter": consumer.delivered_bytes,
        "address": consumer.address,
        "connectedSince": _utc(consumer.connected_at_s),
        "clientVersion": consumer.client_version,
    }


def _utc(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).isoformat().replace("+00:00", "Z")


def _parse(head: bytes) -> tuple[list[str], dict[str, str]]:
    """The request line's words, and the headers by their names in lower case."""
    request, *lines = head.decode("latin-1").split("\r\n")
    pairs = (line.partition(":") for line in lines if ":" in line)
    return request.split(" "), {name.strip().lower(): value.strip() for name, _, value in pairs}


def _response(status: HTTPStatus, answer: Any, keep: bool) -> bytes:
    body = b"ok" if answer == "ok" else json.dumps(answer).encode()
    lines = [
        f"HTTP/1.1 {status.value} {status.phrase}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        f"Connection: {'keep-alive' if keep else 'close'}",
    ]
    if status == HTTPStatus.METHOD_NOT_ALLOWED:
        lines.append("Allow: GET")
    return "\r\n".join([*lines, "", ""]).encode() + body
