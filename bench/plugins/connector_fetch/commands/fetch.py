"""An HTTP GET through requests."""

from typing import Any

import requests


class Fetch:
    """Get a document."""

    def __init__(self, url: str):
        self.url = url

    def execute(self, _config: Any, _task_data: Any) -> Any:
        answer = requests.get(self.url, timeout=10)
        return {"response": {"got": answer.text}, "status": answer.status_code, "mimetype": "application/json"}
