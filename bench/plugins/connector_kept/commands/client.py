"""connector_bucket's command with a client that stays: made by whoever is first, the host's `warmup()` or a call."""

import functools
from typing import Any

import boto3


@functools.lru_cache
def client(region: str) -> Any:
    """Make a region's client once."""
    return boto3.client("s3", region_name=region, aws_access_key_id="id", aws_secret_access_key="none")


class Client:
    """Make a link to an object."""

    def __init__(self, region: str):
        self.region = region

    def execute(self, _config: Any, _task_data: Any) -> Any:
        params = {"Bucket": "files", "Key": "letter.pdf"}
        link = client(self.region).generate_presigned_url("get_object", Params=params)
        return {"response": {"link": link}, "status": 200, "mimetype": "application/json"}
