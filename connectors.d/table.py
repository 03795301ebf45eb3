#!/usr/bin/env python3
"""Tables for workflows: CSV text to rows and back. Standard library only."""

import csv
import io
import json
import sys

TEXT = {"id": "text", "type": "str", "required": True, "description": "CSV with a header line"}
ROWS = {
    "id": "rows",
    "type": "any",
    "required": True,
    "description": "A list of objects with the same keys",
    "schema": {"type": "array", "minItems": 1, "items": {"type": "object"}},
}
DELIMITER = {"id": "delimiter", "type": "str", "required": False, "default": ",", "description": "One character"}

COMMANDS = [
    {"name": "Parse", "description": "Read CSV text into rows", "parameters": [TEXT, DELIMITER]},
    {"name": "Format", "description": "Write rows as CSV text", "parameters": [ROWS, DELIMITER]},
]


def parse(text, delimiter):
    csv.field_size_limit(sys.maxsize)  # the gateway bounds the request
    try:
        rows = list(csv.DictReader(io.StringIO(text), delimiter=delimiter, strict=True))
    except csv.Error as problem:
        return failure("bad_csv", str(problem))
    for number, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            return failure("uneven_row", f"line {number} has not as many fields as the header")
    return {"rows": rows, "count": len(rows)}


def format_(rows, delimiter):
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(rows[0]), delimiter=delimiter, lineterminator="\n")
    try:
        writer.writeheader()
        writer.writerows(rows)
    except ValueError as problem:
        return failure("uneven_row", str(problem))
    return {"text": out.getvalue(), "count": len(rows)}


def failure(code, message):
    return {"error": {"error_code": code, "message": message}}


def main():
    request = json.load(sys.stdin)
    if request["op"] == "describe":
        return {"commands": COMMANDS}
    if request["command"] not in {"Parse", "Format"}:
        return failure("command_not_found", "it has Parse and Format")
    params = request["params"]
    if params["delimiter"] is None:
        params["delimiter"] = DELIMITER["default"]
    if len(params["delimiter"]) != 1:
        return failure("invalid_parameters", "delimiter is one character")
    if request["command"] == "Parse":
        return parse(**params)
    return format_(**params)


json.dump(main(), sys.stdout, ensure_ascii=False)
