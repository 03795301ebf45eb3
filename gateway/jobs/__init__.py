"""Durable jobs: work that outlives the request that asked for it, and its callbacks."""
