"""What is made of the registry for /openapi.json is made once, and asked for cheaply."""

from __future__ import annotations

import asyncio
import gzip
from typing import TYPE_CHECKING

import pytest
from aiohttp.test_utils import make_mocked_request

from gateway.connectors.snapshot import Snapshot
from gateway.http import openapi
from gateway.http.documents import Documents
from gateway.http.openapi import Admittance
from tests.http.test_clients import client
from tests.support import Site, served

if TYPE_CHECKING:
    from pathlib import Path

    from aiohttp import web

FAX = "fax: {run: [cat], commands: {Send: {}}}"
OPEN = Admittance(keyed=False)


async def test_who_has_it_already_is_told_so(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.configure(FAX)
    async with served(site) as gateway:
        first = await gateway.get("/openapi.json")
        assert first.headers["Cache-Control"] == "private, no-cache"
        assert first.headers["Vary"] == "Accept-Encoding"
        assert first.headers["Content-Encoding"] == "gzip"
        plain = await gateway.get("/openapi.json", headers={"Accept-Encoding": "identity"})
        assert "Content-Encoding" not in plain.headers
        assert plain.raw == first.raw
        head = await gateway.request("HEAD", "/openapi.json", headers={"Accept-Encoding": "identity"})
        assert (head.status, head.headers["Content-Length"], head.raw) == (200, str(len(plain.raw)), b"")
        kept = {"If-None-Match": f'"other", {first.headers["ETag"]}'}
        again = await gateway.get("/openapi.json", headers=kept)
        assert (again.status, again.raw, again.headers["ETag"]) == (304, b"", first.headers["ETag"])
        site.configure(f"{FAX}\nmail: {{run: [cat], commands: {{Send: {{}}}}}}")
        await gateway.request("POST", "/v1/reload")
        other = await gateway.get("/openapi.json", headers=kept)
        assert other.status == 200
        assert other.headers["ETag"] != first.headers["ETag"]
        assert "/v1/do/mail/Send" in other.json["paths"]


async def test_one_clients_tag_tells_nothing_of_anothers(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.configure(FAX)
    client(site, "acme", "keys: [KEY(acme)]\nconnectors: {crm: {run: [cat], commands: {Go: {}}}}")
    client(site, "beta", "keys: [KEY(beta)]")
    async with served(site) as gateway:
        keys = [{"Authorization": f"Bearer {name}"} for name in ("acme", "beta")]
        acme, beta = [await gateway.get("/openapi.json", headers=key) for key in keys]
        assert acme.headers["ETag"] != beta.headers["ETag"]
        cross = await gateway.get("/openapi.json", headers={**keys[1], "If-None-Match": acme.headers["ETag"]})
        assert (cross.status, cross.raw) == (200, beta.raw)
        assert b"crm" not in beta.raw
        nobody = await gateway.get("/openapi.json", headers={"If-None-Match": acme.headers["ETag"]})
        assert nobody.status == 401


async def asked(documents: Documents, world: Snapshot) -> web.Response:
    request = make_mocked_request("GET", "/openapi.json", headers={"Accept-Encoding": "gzip"})
    answer = await documents.answer(request, world, OPEN, server="/")
    assert isinstance(answer.body, bytes)  # type: ignore[attr-defined]
    return answer  # type: ignore[return-value]


async def test_it_is_made_once_for_all_who_ask_at_once_and_again_after_a_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[Snapshot] = []

    def document(world: Snapshot, *_: object, **__: object) -> bytes:
        made.append(world)
        if len(made) == 1:
            raise OSError("no more descriptors")
        return b"{}"

    monkeypatch.setattr(openapi, "document", document)
    documents, world = Documents(list, "1"), Snapshot({})
    with pytest.raises(OSError, match="descriptors"):
        await asked(documents, world)
    answers = await asyncio.gather(*(asked(documents, world) for _ in range(10)))
    assert made == [world, world]
    assert {gzip.decompress(answer.body) for answer in answers} == {b"{}"}  # type: ignore[arg-type]
    given_up = asyncio.create_task(asked(documents, other := Snapshot({})))
    await asyncio.sleep(0)
    given_up.cancel()
    await asked(documents, other)
    assert made == [world, world, other], "who waits no longer takes it from nobody"
