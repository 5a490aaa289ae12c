"""The supervisor's parts: its children, and the ledger of requests in its hands."""
