"""The way of an answer to its requester: HTTP POST or WebSocket, as `endpoint` says."""
