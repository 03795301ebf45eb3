"""connector_bucket with a `warmup()`: the host calls it once, before it forks."""

from connector_kept.commands.client import Client


def warmup() -> None:
    """Make the client that the calls use, and what it makes when it is used first."""
    Client("eu-north-1").execute({}, {})
