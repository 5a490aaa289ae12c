"""Finding topics: all of them are here, none is partitioned."""

from __future__ import annotations

from broker.peers import Peer, Refused
from broker.pulsar_pb2 import (
    BaseCommand,
    CommandGetTopicsOfNamespace,
    CommandGetTopicsOfNamespaceResponse,
    CommandLookupTopic,
    CommandLookupTopicResponse,
    CommandPartitionedTopicMetadata,
    CommandPartitionedTopicMetadataResponse,
    ServerError,
)
from broker.topics import NAMESPACE, InvalidTopic, NoSuchTopic, Topics, topic_name


def checked_name(given: str) -> str:
    """The topic's full name. Raises Refused."""
    try:
        return topic_name(given)
    except InvalidTopic as why:
        raise Refused(ServerError.NotAllowedError if given.startswith("non-") else ServerError.InvalidTopicName, str(why)) from None
    except NoSuchTopic as why:
        raise Refused(ServerError.TopicNotFound, str(why)) from None


def partitioned_metadata(peer: Peer, command: CommandPartitionedTopicMetadata) -> None:
    answer = CommandPartitionedTopicMetadataResponse(request_id=command.request_id)
    try:
        checked_name(command.topic)
        answer.partitions, answer.response = 0, CommandPartitionedTopicMetadataResponse.Success
    except Refused as why:
        answer.response, answer.error, answer.message = CommandPartitionedTopicMetadataResponse.Failed, why.error, why.message
    peer.send(BaseCommand(type=BaseCommand.PARTITIONED_METADATA_RESPONSE, partitioned_metadata_response=answer))


def lookup(peer: Peer, command: CommandLookupTopic, service_url: str) -> None:
    """The broker is wherever the client has reached it: behind a forwarded port it does not know its own address."""
    answer = CommandLookupTopicResponse(request_id=command.request_id)
    try:
        checked_name(command.topic)
        answer.response, answer.broker_service_url = CommandLookupTopicResponse.Connect, service_url
        answer.authoritative = answer.proxy_through_service_url = True
    except Refused as why:
        answer.response, answer.error, answer.message = CommandLookupTopicResponse.Failed, why.error, why.message
    peer.send(BaseCommand(type=BaseCommand.LOOKUP_RESPONSE, lookup_response=answer))


def topics_of_namespace(peer: Peer, command: CommandGetTopicsOfNamespace, topics: Topics) -> None:
    found = topics.names() if command.namespace == NAMESPACE and command.mode != CommandGetTopicsOfNamespace.NON_PERSISTENT else []
    answer = CommandGetTopicsOfNamespaceResponse(request_id=command.request_id, topics=found)
    peer.send(BaseCommand(type=BaseCommand.GET_TOPICS_OF_NAMESPACE_RESPONSE, get_topics_of_namespace_response=answer))
