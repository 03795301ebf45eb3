"""The envelopes that the gateway writes."""

from __future__ import annotations

import json

from gateway.protocol.envelope import error_envelope


def test_the_gateways_own_errors_have_the_same_envelope() -> None:
    assert json.loads(error_envelope("connector_busy", "all slots are taken", ("line",))) == {
        "command_response": {"body": {}, "mimetype": "application/json"},
        "command_response_version": 2,
        "error": {"error_code": "connector_busy", "message": "all slots are taken"},
        "spiff__logs": ["line"],
    }
