"""The REST API: OpenAI's chat completions over the queue. Any number of gateways serve one queue.

server.py: its life; app.py: the routes; chat.py: what may be asked; exchange.py: one requester, from its publish
to its last byte; nodes.py: what nodes send; pending.py: who waits; publisher.py: to the queue; models.py: which exist.
"""
