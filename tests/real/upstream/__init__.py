"""A real HTTP server that speaks OpenAI's chat completions, well and in every wrong way that has been seen.

A request says which behaviour it wants, as `NAME?key=value&…`, in the field `mock` of its body, or else in `model`:

    {"model": "mock?latency=100ms&gap=5ms&tokens=32", "messages": […]}
    {"model": "gpt", "mock": "err-500?times=2", "messages": […]}

A name that is not known answers normally. NAME is one of `streams.BEHAVIOURS` (normal and odd answers, broken
connections) or of `failures.FAILURES` (HTTP errors). The keys, all optional:

    latency   until the first output           tokens   how many (default 8, at most max_tokens)
    gap       between two tokens               times    only the first N requests of the same `id` behave so, later
    h.NAME    a header of an HTTP error                 ones are answered normally
                                               id       default: the last message's text

From a shell: `python -m tests.real.upstream --port 0`, which prints its address. In a test: `with Upstream() as upstream`.
"""

from tests.real.upstream.client import Upstream

__all__ = ["Upstream"]
