"""The REST API: OpenAI's chat completions over the queue. Any number of gateways serve one queue.

server.py: its life; connections.py: how many, how long, how large; keys.py, keyfile.py: who may ask; app.py: the routes;
chat.py: what may be asked; exchange.py: one requester, from its publish to its last byte; nodes.py: what nodes send to an
endpoint; links.py: what passes on their links; keepalive.py: the pings there; pending.py: who waits, and who may answer;
patience.py: whether waiting is hopeless; publisher.py: to the queue; models.py: which exist.
"""
