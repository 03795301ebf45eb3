"""Next to nothing: what is measured is everything around it."""

from typing import Any


class Combine:
    """Put two texts together."""

    def __init__(self, first: str, second: str):
        self.first = first
        self.second = second

    def execute(self, _config: Any, _task_data: Any) -> Any:
        return {"response": {"text": self.first + self.second}, "status": 200, "mimetype": "application/json"}
