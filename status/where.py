"""`python supervisor.py where REQUEST_ID`: the timeline of one request, for people.

The node that runs here is asked first, at its STATUS_PORT: it knows what it holds, and its latest thousands of ends. What it
does not know is looked for in the usage records, which all nodes write. What waits in the queue, or is with another node,
can be seen in neither.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from urllib.parse import quote

import msgspec
import urllib3

from errors import ExitCode
from status.timeline import Timeline, of_record

if TYPE_CHECKING:
    from config import Settings

TIMEOUT_S = 10.0
_UNKNOWN = """No trace of {id}.
{asked}
So it was not published, or waits in the queue still, or another node has it (ask there, or its STATUS_PORT's page), or it ended
and its record is gone: Pulsar keeps records for as long as a subscription waits for them, or a retention policy says so."""


def where(settings: Settings, request_id: str) -> int:
    """Prints it; the exit code: 0 found, 1 not."""
    timeline, asked = ask_node(settings, request_id)
    if timeline is None:
        timeline, searched = search_records(settings, request_id)
        asked = f"{asked}\n{searched}"
    print(text(timeline) if timeline else _UNKNOWN.format(id=request_id, asked=asked))
    return ExitCode.OK if timeline else ExitCode.CRASHED


def ask_node(settings: Settings, request_id: str) -> tuple[Timeline | None, str]:
    """The timeline, or why there is none."""
    if not settings.status_port:
        return None, "No node was asked: STATUS_PORT is not set here as for the node."
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(settings.status_host, settings.status_host)
    url = f"http://{host}:{settings.status_port}"
    try:
        answer = urllib3.request("GET", f"{url}/where/{quote(request_id, safe='')}", timeout=TIMEOUT_S, retries=False)
        if answer.status == 200:
            return msgspec.json.decode(answer.data, type=Timeline), ""
        return None, f"The node at {url}: {answer.json()['status']}."
    except (urllib3.exceptions.HTTPError, ValueError, KeyError) as error:
        return None, f"No node answers at {url} ({type(error).__name__})."


def search_records(settings: Settings, request_id: str) -> tuple[Timeline | None, str]:
    """The first record of that id, or where it was looked for in vain."""
    if not settings.pulsar_url:
        return None, "The usage records were not searched: set PULSAR_URL; of a node all in one it is pulsar://127.0.0.1:6650."
    import pulsar

    from messaging.tool import Failure, connected

    wanted, read = request_id.encode(), 0
    try:
        with connected(settings) as client:
            reader = client.create_reader(settings.res_topic_name, pulsar.MessageId.earliest)
            while reader.has_message_available():
                data, read = reader.read_next(5000).data(), read + 1
                if wanted in data and (found := _timeline(data, request_id, settings.res_topic_name)) is not None:
                    return found, ""
                if read % 100_000 == 0:
                    print(f"{read:,} usage records read", file=sys.stderr)
    except Failure as failure:
        return None, f"The usage records were not searched: {failure}"
    except pulsar.PulsarException as error:
        return None, f"The usage records were not searched to their end: {type(error).__name__}: {error}"
    return None, f"None of the {read:,} usage records on {settings.res_topic_name} is of it."


def _timeline(data: bytes, request_id: str, topic: str) -> Timeline | None:
    try:
        found = of_record(data, f"its usage record on {topic}")
    except msgspec.DecodeError:
        return None
    return found if found.request_id == request_id else None


def text(timeline: Timeline) -> str:
    lines = [f"Request {timeline.request_id}: {timeline.words}", ""]
    lines += [f"  {_at(step.at_ms)}  {_after(step.after_ms):>11}  {step.words}" for step in timeline.steps]
    if timeline.earlier:
        lines += ["", "Attempts before, on any node:", *(f"  {line}" for line in timeline.earlier)]
    width = max(map(len, timeline.facts), default=0)
    lines += ["", *(f"  {name:<{width}}  {value}" for name, value in timeline.facts.items())]
    return "\n".join([*lines, "", f"Found in {timeline.source}."])


def _at(ms: float) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3] + "Z"


def _after(ms: float) -> str:
    if not ms:
        return ""
    return f"+{ms:.0f} ms" if ms < 10_000 else f"+{ms / 1000:,.1f} s"
