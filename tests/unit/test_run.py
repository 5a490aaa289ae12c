"""A run as several threads see it."""

from __future__ import annotations

import threading
import time

import pytest

from answers.endpoint import NodeStopped
from answers.run import Run
from backends.aboard import Aboard


def test_nothing_goes_out_past_the_lease_until_it_is_renewed() -> None:
    aboard = Aboard()
    run = aboard.add(Run(1, "id"))
    aboard.lease.until_s = time.monotonic() - 1
    worker = threading.Thread(target=run.begin, daemon=True)
    worker.start()
    worker.join(0.3)
    assert not run.begun
    aboard.lease.until_s = time.monotonic() + 60
    worker.join(10)
    assert run.begun


def test_an_end_reaches_who_waits_for_the_lease() -> None:
    aboard = Aboard()
    run = aboard.add(Run(1, "id"))
    aboard.lease.until_s = time.monotonic() - 1
    raised = threading.Event()

    def begin() -> None:
        with pytest.raises(NodeStopped):
            run.begin()
        raised.set()

    threading.Thread(target=begin, daemon=True).start()
    assert not raised.wait(0.2)
    began_s = time.monotonic()
    aboard.end_all(NodeStopped("over"), 5.0)
    assert raised.wait(10) and not run.begun and time.monotonic() - began_s < 10
