"""Which endpoints a node answers to: ALLOWED_ENDPOINTS, and what is none unless it is named there."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

IpAddress = IPv4Address | IPv6Address
IpNetwork = IPv4Network | IPv6Network

# No requester's service is at any of these, but what hands out a machine's credentials, or listens to everybody, may be.
_NEVER: dict[IpNetwork, str] = {
    ip_network("0.0.0.0/8"): "unspecified",
    ip_network("::/128"): "unspecified",
    ip_network("169.254.0.0/16"): "link-local",  # most clouds' metadata at 169.254.169.254, and ECS's at 169.254.170.2
    ip_network("fe80::/10"): "link-local",
    ip_network("fd00:ec2::/32"): "of AWS's metadata",
    ip_network("fd20:ce::254/128"): "of Google's metadata",
    ip_network("100.100.100.200/32"): "of Alibaba's metadata",
    ip_network("192.0.0.192/32"): "of Oracle's metadata",
    ip_network("168.63.129.16/32"): "of Azure's platform",
    ip_network("224.0.0.0/4"): "multicast",
    ip_network("ff00::/8"): "multicast",
    ip_network("255.255.255.255/32"): "broadcast",
}
_NEVER_NAMES = frozenset({"metadata", "metadata.google.internal", "metadata.goog", "instance-data", "instance-data.ec2.internal"})
_NAT64 = ip_network("64:ff9b::/96")
_ENTRY = re.compile(r"(?:\[(?P<v6>[^\]]+)\]|(?P<other>[^\[\]:]+))(?::(?P<port>[0-9]{1,5}))?")
_NAME = re.compile(r"\*|(?:\*\.)?[a-z0-9_](?:[a-z0-9_.-]*[a-z0-9_])?", re.ASCII)


@dataclass(frozen=True)
class _Entry:
    """One of ALLOWED_ENDPOINTS: a network, or a name: `*`, `*.suffix`, or itself. port: None for any."""

    network: IpNetwork | None
    name: str
    port: int | None

    def names(self, host: str) -> bool:
        return self.name in ("*", host) or (self.name.startswith("*.") and host.endswith(self.name[1:]))


class Allowed:
    """entries: as in ALLOWED_ENDPOINTS; empty for everything but what is none of a requester's. Raises ValueError."""

    def __init__(self, entries: str = "") -> None:
        self._entries = [_entry(text) for text in re.split(r"[,\s]+", entries.strip()) if text]

    def why_not(self, host: str, port: int, address: IpAddress | None = None) -> str:
        """Why not to answer there; "" where one may. address: what the host is, once that is known; before, only what is
        refused whatever the host is."""
        host = host.lower().rstrip(".")
        if host in _NEVER_NAMES:
            return f"{host} is a cloud's metadata"
        addresses = [address] if address is not None else _literal(host)
        for found in addresses:
            if why := self._why_not_address(host, port, found):
                return why
        by_network = any(entry.network for entry in self._entries)
        if addresses or not self._entries or by_network or self._named(host, port):
            return ""
        return f"{host}:{port} is not among ALLOWED_ENDPOINTS"

    def _why_not_address(self, host: str, port: int, address: IpAddress) -> str:
        networks = [e.network for e in self._entries if e.network is not None and e.port in (None, port) and address in e.network]
        for inner in (address, *_inside(address)):
            for never, what in _NEVER.items():
                if inner in never and not any(_is_within(network, never) for network in networks):
                    return f"{address} is {what}"
        if not self._entries or networks or self._named(host, port):
            return ""
        return f"{host}:{port} ({address}) is not among ALLOWED_ENDPOINTS"

    def _named(self, host: str, port: int) -> bool:
        return any(entry.network is None and entry.port in (None, port) and entry.names(host) for entry in self._entries)


def _entry(text: str) -> _Entry:
    network = _network(text)  # first, as an IPv6 network needs no brackets where no port follows
    if network is not None:
        return _Entry(network, "", None)
    parts = _ENTRY.fullmatch(text)
    port = int(parts["port"]) if parts and parts["port"] else None
    if parts is None or port == 0 or (port or 0) > 65535:
        raise ValueError(text)
    inner = parts["v6"] or parts["other"]
    network = _network(inner)
    name = inner.lower().rstrip(".")
    if network is None and (parts["v6"] or not _NAME.fullmatch(name) or re.fullmatch(r"[0-9./]+", name)):
        raise ValueError(text)
    return _Entry(network, "" if network else name, port)


def _network(text: str) -> IpNetwork | None:
    try:
        return ip_network(text, strict=False)
    except ValueError:
        return None


def _literal(host: str) -> list[IpAddress]:
    try:
        return [ip_address(host.strip("[]"))]
    except ValueError:
        return []


def _inside(address: IpAddress) -> list[IpAddress]:
    """IPv4 addresses that an IPv6 one stands for."""
    if isinstance(address, IPv4Address):
        return []
    teredo = address.teredo
    found = [address.ipv4_mapped, address.sixtofour, teredo[1] if teredo else None]
    if address in _NAT64:
        found.append(IPv4Address(int(address) & 0xFFFFFFFF))
    return [inner for inner in found if inner is not None]


def _is_within(network: IpNetwork, outer: IpNetwork) -> bool:
    """Whether it names the outer one or a part of it: an entry for everything does not mean to let everything in."""
    return network.version == outer.version and network.prefixlen >= outer.prefixlen and network.network_address in outer
