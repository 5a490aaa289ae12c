"""Pulsar's client, as those who measure use it."""

from __future__ import annotations

import os

import pulsar


def quiet_client(url: str) -> pulsar.Client:
    """Its log would be mixed with the figures."""
    return pulsar.Client(url, operation_timeout_seconds=10, logger=pulsar.FileLogger(pulsar.LoggerLevel.Error, os.devnull))
