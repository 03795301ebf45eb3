"""A client made from `config`, and what its errors mean.

| error | what | http_status |
| --- | --- | --- |
| s3_not_configured | `config` lacks keys or a region, or they cannot be used | |
| s3_unreachable | no connection, or it broke | 503 |
| s3_invalid_content | neither text nor base64, or an object that is not text | |
| s3_object_too_large | more than `max_bytes` | |
| AWS's own code, such as NoSuchKey | what the server says | 503 when it says: later |

https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import boto3
import botocore.config
import botocore.exceptions

if TYPE_CHECKING:
    from collections.abc import Callable

LATER = {"SlowDown", "ServiceUnavailable", "InternalError", "RequestTimeout", "503", "500"}
BOUNDS = botocore.config.Config(connect_timeout=5, read_timeout=20, retries={"max_attempts": 2})


class Problem(Exception):
    """Something to tell the caller."""

    def __init__(self, code: str, message: str, *, later: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.later = later

    def told(self) -> dict[str, Any]:
        error = {"error": {"error_code": self.code, "message": str(self)}}
        return {**error, "http_status": 503} if self.later else error


def run(config: dict[str, Any], use: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
    """Call `use` with a client, and tell what goes wrong."""
    try:
        return use(_client(config))
    except Problem as problem:
        return problem.told()
    except botocore.exceptions.ClientError as problem:
        error = problem.response["Error"]
        code = str(error.get("Code", "Unknown"))
        return Problem(code, error.get("Message") or str(problem), later=code in LATER).told()
    except botocore.exceptions.ParamValidationError as problem:
        return Problem("ParamValidation", str(problem)).told()
    except botocore.exceptions.BotoCoreError as problem:
        return Problem("s3_unreachable", str(problem), later=True).told()


def _client(config: dict[str, Any]) -> Any:
    if not config.get("access_key_id") or not config.get("secret_access_key"):
        raise Problem("s3_not_configured", "set config.access_key_id and config.secret_access_key")
    session = boto3.Session(
        aws_access_key_id=config["access_key_id"],
        aws_secret_access_key=config["secret_access_key"],
        aws_session_token=config.get("session_token") or None,
        region_name=config.get("region") or None,
    )
    try:
        return session.client("s3", endpoint_url=config.get("endpoint_url") or None, config=BOUNDS)
    except (ValueError, botocore.exceptions.BotoCoreError) as problem:
        raise Problem("s3_not_configured", str(problem)) from problem
