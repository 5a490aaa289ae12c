"""Where a node may answer to: names, addresses, networks and ports, and what is refused whatever is asked for."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from answers.allowed import Allowed

NEVER = [
    "169.254.169.254", "169.254.170.2", "fe80::1", "fe80::1%eth0", "fd00:ec2::254", "fd00:ec2::23", "fd20:ce::254", "100.100.100.200",
    "192.0.0.192", "168.63.129.16", "0.0.0.0", "::", "224.0.0.1", "239.255.255.250", "ff02::1", "255.255.255.255",
    "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::1",
]  # fmt: skip


def why_not(entries: str, host: str, port: int = 80, address: str = "") -> str:
    return Allowed(entries).why_not(host, port, ip_address(address) if address else None)


@pytest.mark.parametrize("entries", ["", "*", "0.0.0.0/0, ::/0", "gateway.example"])
@pytest.mark.parametrize("address", NEVER)
def test_what_is_never_a_requester(entries: str, address: str) -> None:
    """By its address, or behind a name; an entry for everything does not mean these."""
    assert why_not(entries, address, address=address)
    assert why_not(entries, address)  # before it is connected to
    assert why_not(entries, "gateway.example", address=address)


@pytest.mark.parametrize("name", ["metadata.google.internal", "Metadata.Google.Internal.", "metadata"])
def test_a_clouds_metadata_is_refused_by_its_names(name: str) -> None:
    assert why_not("", name) and why_not("*", name, address="10.0.0.1")


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "10.1.2.3", "192.168.0.1", "8.8.8.8", "fd00::1", "2001:db8::1"])
def test_all_else_is_allowed_where_nothing_is_set(address: str) -> None:
    assert why_not("", address, address=address) == "" == why_not("", "any.name", address=address)


@pytest.mark.parametrize(
    ("entries", "host", "port", "address", "allowed"),
    [
        ("gw.example", "gw.example", 80, "10.0.0.1", True),
        ("gw.example", "GW.Example.", 80, "10.0.0.1", True),
        ("gw.example", "x.gw.example", 80, "10.0.0.1", False),
        ("gw.example", "gw.example.evil", 80, "10.0.0.1", False),
        ("gw.example", "10.0.0.1", 80, "10.0.0.1", False),
        ("gw.example:8081", "gw.example", 8081, "10.0.0.1", True),
        ("gw.example:8081", "gw.example", 80, "10.0.0.1", False),
        ("*.svc.local", "gw.ns.svc.local", 80, "10.0.0.1", True),
        ("*.svc.local", "svc.local", 80, "10.0.0.1", False),
        ("*.svc.local", "evilsvc.local", 80, "10.0.0.1", False),
        ("*:8081", "anything", 8081, "1.2.3.4", True),
        ("*:8081", "anything", 8082, "1.2.3.4", False),
        ("10.0.0.0/8", "gw.example", 80, "10.1.2.3", True),
        ("10.0.0.0/8", "gw.example", 80, "11.1.2.3", False),
        ("10.0.0.0/8:8081", "10.0.0.1", 8081, "10.0.0.1", True),
        ("10.0.0.0/8:8081", "10.0.0.1", 80, "10.0.0.1", False),
        ("10.0.0.7", "10.0.0.7", 80, "10.0.0.7", True),
        ("fd00::/8", "gw", 80, "fd12::1", True),
        ("[fd00::/8]:8081", "gw", 8081, "fd12::1", True),
        ("[fd00::/8]:8081", "gw", 80, "fd12::1", False),
        ("::1", "::1", 80, "::1", True),
        ("a.example, 10.0.0.0/8\n b.example:1", "b.example", 1, "9.9.9.9", True),
        ("127.0.0.1", "localhost", 80, "127.0.0.1", True),
        ("127.0.0.1", "gw", 80, "10.0.0.1", False),
        ("169.254.0.0/16", "169.254.10.1", 80, "169.254.10.1", True),  # named, so it is meant
        ("169.254.10.1", "169.254.10.1", 80, "169.254.10.1", True),
        ("169.254.10.1", "169.254.169.254", 80, "169.254.169.254", False),
    ],
)  # fmt: skip
def test_what_is_listed_is_allowed_and_nothing_else(entries: str, host: str, port: int, address: str, allowed: bool) -> None:
    assert (why_not(entries, host, port, address) == "") is allowed
    if allowed:
        assert why_not(entries, host, port) == ""  # nor is it refused before its address is known


def test_a_name_that_no_network_could_allow_is_refused_before_it_is_looked_up() -> None:
    assert why_not("a.example", "b.example") == "b.example:80 is not among ALLOWED_ENDPOINTS"
    assert why_not("a.example, 10.0.0.0/8", "b.example") == ""  # it may be in there


@pytest.mark.parametrize("entries", ["http://h", "h:0", "h:99999", "h:x", "a b c:", "[gw]:1", "10.0.0.0/99", "10.0.0", "*gw", "a/b", "-"])
def test_what_is_no_entry_is_named(entries: str) -> None:
    with pytest.raises(ValueError):
        Allowed(entries)
