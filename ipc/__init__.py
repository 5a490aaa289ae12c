"""What crosses between the supervisor and one child, and the channel that carries it."""
