"""A client of boto3, made for each call as connectors do, and not used: there is no network in it."""

from typing import Any

import boto3


class Client:
    """Make an S3 client."""

    def __init__(self, region: str):
        self.region = region

    def execute(self, _config: Any, _task_data: Any) -> Any:
        client = boto3.client("s3", region_name=self.region, aws_access_key_id="id", aws_secret_access_key="none")
        return {"response": {"endpoint": client.meta.endpoint_url}, "status": 200, "mimetype": "application/json"}
