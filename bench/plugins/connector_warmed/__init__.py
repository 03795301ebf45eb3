"""connector_bucket with a `warmup()`: the host calls it once, before it forks."""

from connector_warmed.commands.client import Client


def warmup() -> None:
    """Have boto3's default session read what it needs to know of S3."""
    Client("eu-north-1").execute({}, {})
