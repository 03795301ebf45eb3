"""The reader of messages stays within what it was given, whatever comes (`make fuzz` goes on for a minute)."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

FUZZ = Path(__file__).parent / "fuzz"
INPUTS = 20_000


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler on this machine")
def test_what_is_no_message_reads_and_keeps_nothing_that_is_not_its_own() -> None:
    done = subprocess.run([FUZZ, "--inputs", str(INPUTS)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    inputs, bodies, words = map(int, re.findall(r"\d+", done.stdout))
    assert inputs == INPUTS > bodies > words > INPUTS // 5  # neither refused at the door, nor all of it right
