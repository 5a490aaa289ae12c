"""Pulsar's admin API, as far as anybody here asks it: which topics there are, and who subscribes to them."""

from __future__ import annotations

from typing import TypeVar
from urllib.parse import quote

import msgspec
import urllib3

ADMIN_TIMEOUT_S = 3.0
Found = TypeVar("Found")
NAMESPACE = "public/default"


class AdminSilent(Exception):
    """The admin address gave no answer that can be used."""


class _Subscription(msgspec.Struct):
    msgBacklog: int = 0


class _Stats(msgspec.Struct):
    """As much of Pulsar's TopicStats."""

    subscriptions: dict[str, _Subscription] = {}


class PulsarAdmin:
    """url: `http://host:8080`; token: a JWT or empty; ca_bundle: a PEM file's path or empty. Its calls block and raise
    AdminSilent."""

    def __init__(self, url: str, token: str = "", ca_bundle: str = "", timeout_s: float = ADMIN_TIMEOUT_S) -> None:
        self._base = f"{url}/admin/v2/persistent/{NAMESPACE}"
        self._pool = urllib3.PoolManager(
            maxsize=8,
            headers={"Authorization": f"Bearer {token}"} if token else {},
            timeout=urllib3.Timeout(total=timeout_s),
            retries=urllib3.Retry(0, redirect=2),
            ca_certs=ca_bundle or None,
        )

    def subscriptions(self, topic: str) -> list[str]:
        """`topic`: its name within the namespace. None where there is no such topic."""
        return self._get(f"/{quote(topic, safe='')}/subscriptions")

    def topics(self) -> list[str]:
        """Full names, of partitioned topics and of the others."""
        return self._get("") + self._get("/partitioned")

    def backlog(self, topic: str, subscription: str) -> int:
        """Messages that the subscription has not acknowledged, over all partitions; 0 where there is no such topic."""
        name = quote(topic, safe="")
        for path in (f"/{name}/stats", f"/{name}/partitioned-stats?perPartition=false"):
            found = self._ask(path, _Stats)
            if found is not None:
                subscribed = found.subscriptions.get(subscription)
                return subscribed.msgBacklog if subscribed else 0
        return 0

    def _get(self, path: str) -> list[str]:
        return self._ask(path, list[str]) or []

    def _ask(self, path: str, type_: type[Found]) -> Found | None:
        """None where it is not found."""
        try:
            response = self._pool.request("GET", self._base + path)
            if response.status == 404:
                return None
            if response.status == 200:
                return msgspec.json.decode(response.data, type=type_)
        except (urllib3.exceptions.HTTPError, msgspec.DecodeError) as error:
            raise AdminSilent(str(error)) from None
        raise AdminSilent(f"HTTP {response.status}")
