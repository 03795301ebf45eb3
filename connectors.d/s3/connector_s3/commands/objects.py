"""Commands on the objects of a bucket."""

from __future__ import annotations

import base64
import binascii
from typing import Any

from connector_s3.client import Problem, run

MAX_BYTES = 4 << 20  # the gateway takes 8 MiB of result, and base64 needs a third more


class PutObject:
    """Write an object, over an older one if there is one."""

    def __init__(
        self,
        *,
        bucket: str,
        key: str,
        content: str,
        base64: bool = False,
        content_type: str | None = None,
        metadata: dict[str, str] | None = None,
    ) -> None:
        """Take what to write.

        Args:
            bucket: The bucket, which exists.
            key: The object's name.
            content: Text, written as UTF-8.
            base64: Whether the content is base64, and what it means is written.
            content_type: The mimetype; text/plain or application/octet-stream when absent.
            metadata: Names and values that are kept with it.
        """
        self.bucket = bucket
        self.key = key
        self.content = content
        self.base64 = base64
        self.content_type = content_type
        self.metadata = metadata or {}

    def execute(self, config: dict[str, Any], _task_data: Any) -> dict[str, Any]:
        return run(config, self._put)

    def _put(self, client: Any) -> dict[str, Any]:
        data = _decoded(self.content) if self.base64 else self.content.encode()
        plain = "application/octet-stream" if self.base64 else "text/plain; charset=utf-8"
        answer = client.put_object(
            Bucket=self.bucket,
            Key=self.key,
            Body=data,
            ContentType=self.content_type or plain,
            Metadata=self.metadata,
        )
        return {
            "etag": answer["ETag"].strip('"'),
            "size": len(data),
            **({"version_id": answer["VersionId"]} if "VersionId" in answer else {}),
        }


class GetObject:
    """Read an object."""

    def __init__(self, *, bucket: str, key: str, base64: bool = False, max_bytes: int = MAX_BYTES) -> None:
        """Take what to read.

        Args:
            bucket: The bucket.
            key: The object's name.
            base64: Whether to answer base64, for what is not text.
            max_bytes: A larger object is refused.
        """
        self.bucket = bucket
        self.key = key
        self.base64 = base64
        self.max_bytes = max_bytes

    def execute(self, config: dict[str, Any], _task_data: Any) -> dict[str, Any]:
        return run(config, self._get)

    def _get(self, client: Any) -> dict[str, Any]:
        answer = client.get_object(Bucket=self.bucket, Key=self.key)
        size = answer["ContentLength"]
        if size > self.max_bytes:
            raise Problem("s3_object_too_large", f"{self.key} has {size} bytes, more than {self.max_bytes} (max_bytes)")
        with answer["Body"] as body:
            data = body.read()
        return {
            "content": base64.b64encode(data).decode() if self.base64 else _text(data),
            "base64": self.base64,
            "size": size,
            "content_type": answer["ContentType"],
            "etag": answer["ETag"].strip('"'),
            "last_modified": answer["LastModified"].isoformat(),
            "metadata": answer["Metadata"],
        }


class ListObjects:
    """List a bucket's objects, in the order of their names."""

    def __init__(self, *, bucket: str, prefix: str = "", limit: int = 1000, after: str | None = None) -> None:
        """Take what to list.

        Args:
            bucket: The bucket.
            prefix: Only names that begin so.
            limit: How many at most; S3 gives no more than 1000 at once.
            after: The `next` of an answer: the list goes on from there.
        """
        self.bucket = bucket
        self.prefix = prefix
        self.limit = limit
        self.after = after

    def execute(self, config: dict[str, Any], _task_data: Any) -> dict[str, Any]:
        return run(config, self._list)

    def _list(self, client: Any) -> dict[str, Any]:
        more = {"ContinuationToken": self.after} if self.after else {}
        answer = client.list_objects_v2(Bucket=self.bucket, Prefix=self.prefix, MaxKeys=self.limit, **more)
        objects = [
            {
                "key": found["Key"],
                "size": found["Size"],
                "etag": found["ETag"].strip('"'),
                "last_modified": found["LastModified"].isoformat(),
            }
            for found in answer.get("Contents", ())
        ]
        return {"objects": objects, "next": answer.get("NextContinuationToken")}


def _decoded(content: str) -> bytes:
    try:
        return base64.b64decode(content, validate=True)
    except binascii.Error as problem:
        raise Problem("s3_invalid_content", f"the content is not base64: {problem}") from problem


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as problem:
        raise Problem("s3_invalid_content", "the object is not text: ask for it with base64") from problem
