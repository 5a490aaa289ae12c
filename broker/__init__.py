"""The embedded broker: one process that speaks Pulsar's binary protocol to Pulsar's own clients and keeps messages in
SQLite. For one machine.

Read it as: wire (frames) → connections (one peer) → publishing, consuming, lookups (its commands) → topics →
subscriptions and cursors (who gets what) → storage (what outlives a crash). admin answers the few questions that tools
ask over HTTP; server is the life of it all.
"""
