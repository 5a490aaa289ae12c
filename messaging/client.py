"""One way to open a Pulsar client, and the one way out of a process that has had one."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

import pulsar

from messaging.tokens import current_token

if TYPE_CHECKING:
    from config import Settings


def open_client(settings: Settings, *, operation_timeout_s: int = 10) -> pulsar.Client:
    """A client of `settings.pulsar_url`. Nothing is connected before the first producer or consumer."""
    return pulsar.Client(
        settings.pulsar_url,
        authentication=_authentication(settings),
        operation_timeout_seconds=operation_timeout_s,
        connection_timeout_ms=5000,
        tls_trust_certs_file_path=settings.ca_bundle or None,
        tls_validate_hostname=True,
        # Its own log names no cause that messaging/handshake.py does not find better; a Python logger, called from
        # its threads, costs the interpreter's lock and can abort the process at its end.
        logger=pulsar.ConsoleLogger(pulsar.LoggerLevel.Warn) if settings.debug else pulsar.FileLogger(pulsar.LoggerLevel.Error, os.devnull),
    )


def _authentication(settings: Settings) -> pulsar.AuthenticationToken | None:
    """A token from a file is read anew at each connect."""
    if not settings.pulsar_token:
        return None
    return pulsar.AuthenticationToken((lambda: current_token(settings)) if settings.pulsar_token_file else settings.pulsar_token)


_thread = threading.local()


def settle_thread() -> None:
    """First in what the client calls from a thread of its own, which is none of Python's: that gets a thread state for the call,
    and a mapped stack with it, which cost more than what is called. Held once, and never let go of, they stay for the next."""
    if not hasattr(_thread, "is_settled"):
        _thread.is_settled = True
        ctypes.pythonapi.PyGILState_Ensure()


def close_in_time(close: Callable[[], object], within_s: float) -> None:
    """Run `close`, which waits for a queue that is away; the process need not wait longer than this."""
    closing = threading.Thread(target=close, daemon=True)
    closing.start()
    closing.join(within_s)


def leave(exit_code: int) -> NoReturn:
    """Ends the process at once, for one that has served and has nothing else to do.

    The interpreter's own way out races with threads of the Pulsar client that outlive its close(): about one exit in ten
    ended with SIGABRT (pulsar-client 3.13.0), and one whose queue is away waits for threads that try to connect.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)
