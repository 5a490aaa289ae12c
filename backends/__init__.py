"""A backend child: its life, and the model it wraps (an API, a local model server, a fixed answer)."""
