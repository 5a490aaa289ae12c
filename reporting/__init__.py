"""What the node tells others: usage records and its log."""
