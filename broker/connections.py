"""One connection: handshake, token, keep-alive, back-pressure; each command goes to who handles it."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Callable
from typing import Any, cast

from loguru import logger

from broker import lookups
from broker.consuming import Consuming
from broker.dispatching import Dispatcher
from broker.peers import NO_REQUEST, Refused, refuse
from broker.publishing import Publishing
from broker.pulsar_pb2 import (
    BaseCommand,
    CommandConnect,
    CommandConnected,
    CommandConsumerStatsResponse,
    CommandGetSchemaResponse,
    CommandPing,
    CommandPong,
    CommandRefused,
    ServerError,
)
from broker.storage import Storage
from broker.topics import Topics
from broker.wire import MAX_MESSAGE_BYTES, Frame, FrameReader, WireError, frame_head, parse_command

SERVER_VERSION = "WorkerNode embedded broker"
PROTOCOL_VERSION = 19  # of Pulsar 3 and 4, less what came with 20 and 21: migrated topics, and topic lists
WRITE_BUFFER_BYTES = 1024 * 1024
_SILENT_TICKS = 2

Type = BaseCommand.Type
Handler = Callable[[Any, bytes], None]


class Broker:
    """What all connections share. `token`: what a client must bring, empty for none."""

    def __init__(self, topics: Topics, storage: Storage, dispatcher: Dispatcher, token: str, max_connections: int) -> None:
        self.topics, self.storage, self.dispatcher = topics, storage, dispatcher
        self.max_connections = max_connections
        self.connections: set[Connection] = set()
        self._token = token.encode()

    def accepts(self, command: CommandConnect) -> bool:
        return not self._token or hmac.compare_digest(command.auth_data, self._token)


class Connection(asyncio.Protocol):
    """Whatever goes wrong here closes this connection, and no other."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._loop = asyncio.get_running_loop()
        self._reader = FrameReader()
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._holds = 0
        self._greeted = self._closed = self._heard = self._choked = False
        self._silent_ticks = 0
        self.address = self.client_version = ""
        self._publishing = Publishing(self, broker.topics, broker.storage)
        self._consuming = Consuming(self, broker.topics, broker.storage)
        self._handlers = self._table()

    # ---- the transport's calls ----

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but name
        peer, host = transport.get_extra_info("peername"), transport.get_extra_info("sockname")
        self.address = f"/{peer[0]}:{peer[1]}" if peer else ""
        self._service_url = f"pulsar://[{host[0]}]:{host[1]}" if ":" in host[0] else f"pulsar://{host[0]}:{host[1]}"
        transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
        self._broker.connections.add(self)
        if len(self._broker.connections) > self._broker.max_connections:
            self.abort(f"there are {self._broker.max_connections} connections already")

    def data_received(self, data: bytes) -> None:
        self._heard = True
        try:
            for frame in self._reader.feed(data):
                if self._closed:
                    return
                self._take(frame)
        except WireError as why:
            self.abort(str(why))
        except Exception:
            logger.exception("{}: a command failed", self.address)
            self.abort("its command failed")

    def connection_lost(self, error: Exception | None) -> None:
        self._closed = True
        self._broker.connections.discard(self)
        self._publishing.gone()
        self._consuming.gone()

    def pause_writing(self) -> None:
        """Who does not read its answers is not read from either."""
        self._choked = True
        self.hold()

    def resume_writing(self) -> None:
        self._choked = False
        self.release()
        self._consuming.readable_again()

    # ---- as a Peer ----

    @property
    def writable(self) -> bool:
        return not self._choked and self._out_bytes < WRITE_BUFFER_BYTES

    def send(self, command: BaseCommand, body: bytes = b"") -> None:
        if self._closed:
            return
        encoded = command.SerializeToString()
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out += (frame_head(len(encoded), len(body)), encoded, body)
        self._out_bytes += len(encoded) + len(body) + 8

    def hold(self) -> None:
        self._holds += 1
        if self._holds == 1 and not self._closed:
            self._transport.pause_reading()

    def release(self) -> None:
        self._holds -= 1
        if self._holds == 0 and not self._closed:
            self._transport.resume_reading()

    # ---- the server's calls ----

    def tick(self) -> None:
        """Each keep-alive interval: a peer that was silent over one is asked, one that stays silent is dead."""
        if self._heard or (self._holds and not self._choked):
            self._heard, self._silent_ticks = False, 0
            return
        self._silent_ticks += 1
        if self._silent_ticks >= _SILENT_TICKS or not self._greeted:
            self.abort("it has been silent for too long")
        else:
            self.send(BaseCommand(type=BaseCommand.PING, ping=CommandPing()))

    def abort(self, why: str) -> None:
        if not self._closed:
            logger.warning("{}: connection closed: {}", self.address, why)
            self._closed = True
            self._transport.abort()

    def close(self) -> None:
        """After what is queued is sent."""
        self._flush()
        self._closed = True
        self._transport.close()

    # ---- inside ----

    def _flush(self) -> None:
        """All that this turn had to say, at once."""
        out, self._out = self._out, []
        was_full, self._out_bytes = self._out_bytes >= WRITE_BUFFER_BYTES, 0
        if out and not self._closed:
            # Not writelines: uvloop gives all pieces to one writev(2), which takes 1,024 and breaks the connection off at more.
            self._transport.write(b"".join(out))
            if was_full and not self._choked:
                self._consuming.readable_again()

    def _take(self, frame: Frame) -> None:
        command = parse_command(frame.command)
        if not self._greeted and command.type != Type.CONNECT:
            raise WireError("a command before CONNECT")
        found = self._handlers.get(command.type)
        if found is None:
            raise WireError(f"a command that clients do not send: {Type.Name(command.type)}")
        field, handler = found
        if not command.HasField(field):
            raise WireError(f"a command without what belongs to it: {Type.Name(command.type)}")
        details = getattr(command, field)
        try:
            handler(details, frame.body)
        except Refused as why:
            refuse(self, details.request_id, why.error, why.message)

    def _table(self) -> dict[int, tuple[str, Handler]]:
        """Command → its field, and what to do with it."""
        publishing, consuming, topics = self._publishing, self._consuming, self._broker.topics
        return {
            Type.CONNECT: ("connect", lambda c, _: self._connect(c)),
            Type.PING: ("ping", lambda c, _: self.send(BaseCommand(type=Type.PONG, pong=CommandPong()))),
            Type.PONG: ("pong", lambda c, _: None),
            Type.SEND: ("send", publishing.send),
            Type.ACK: ("ack", lambda c, _: consuming.ack(c)),
            Type.FLOW: ("flow", lambda c, _: consuming.flow(c)),
            Type.PRODUCER: ("producer", lambda c, _: publishing.open(c)),
            Type.CLOSE_PRODUCER: ("close_producer", lambda c, _: publishing.close(c.producer_id, c.request_id)),
            Type.SUBSCRIBE: ("subscribe", lambda c, _: consuming.subscribe(c)),
            Type.CLOSE_CONSUMER: ("close_consumer", lambda c, _: consuming.close(c.consumer_id, c.request_id)),
            Type.UNSUBSCRIBE: ("unsubscribe", lambda c, _: consuming.unsubscribe(c)),
            Type.REDELIVER_UNACKNOWLEDGED_MESSAGES: ("redeliver", lambda c, _: consuming.redeliver(c)),
            Type.SEEK: ("seek", lambda c, _: consuming.seek(c)),
            Type.GET_LAST_MESSAGE_ID: ("get_last_message_id", lambda c, _: consuming.last_message_id(c)),
            Type.PARTITIONED_METADATA: ("partitioned_metadata", lambda c, _: lookups.partitioned_metadata(self, c)),
            Type.LOOKUP: ("lookup", lambda c, _: lookups.lookup(self, c, self._service_url)),
            Type.GET_TOPICS_OF_NAMESPACE: ("get_topics_of_namespace", lambda c, _: lookups.topics_of_namespace(self, c, topics)),
            Type.CONSUMER_STATS: ("consumer_stats", lambda c, _: self._refuse_stats(c.request_id)),
            Type.GET_SCHEMA: ("get_schema", lambda c, _: self._refuse_schema(c.request_id)),
        } | {number: (name, _refuse_whatever) for number, name in _REFUSED.items()}

    def _connect(self, command: CommandConnect) -> None:
        if self._greeted:
            raise WireError("a second CONNECT")
        if not self._broker.accepts(command):
            logger.warning("{}: refused: {} token", self.address, "a wrong" if command.auth_data else "no")
            refuse(self, NO_REQUEST, ServerError.AuthenticationError, "Failed to authenticate")
            self.close()
            return
        self._greeted, self.client_version = True, command.client_version
        version = min(PROTOCOL_VERSION, command.protocol_version)
        answer = CommandConnected(server_version=SERVER_VERSION, protocol_version=version, max_message_size=MAX_MESSAGE_BYTES)
        self.send(BaseCommand(type=Type.CONNECTED, connected=answer))

    def _refuse_stats(self, request_id: int) -> None:
        answer = CommandConsumerStatsResponse(request_id=request_id, error_code=ServerError.NotAllowedError, error_message=_NOT_HERE)
        self.send(BaseCommand(type=Type.CONSUMER_STATS_RESPONSE, consumer_stats_response=answer))

    def _refuse_schema(self, request_id: int) -> None:
        """In Pulsar's words for a topic that has none."""
        error, message = ServerError.TopicNotFound, "Topic not found or no-schema"
        answer = CommandGetSchemaResponse(request_id=request_id, error_code=error, error_message=message)
        self.send(BaseCommand(type=Type.GET_SCHEMA_RESPONSE, get_schema_response=answer))


_NOT_HERE = "Not supported by the embedded broker"
_REFUSED: dict[int, str] = {
    number: BaseCommand.DESCRIPTOR.fields_by_number[number].name
    for number, descriptor in BaseCommand.DESCRIPTOR.fields_by_number.items()
    if descriptor.message_type is CommandRefused.DESCRIPTOR
}


def _refuse_whatever(_: CommandRefused, __: bytes) -> None:
    raise Refused(ServerError.NotAllowedError, _NOT_HERE)
