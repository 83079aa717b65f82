"""Processes that cannot go on: they end, and say where they were."""

import subprocess
import sys

import pytest

from user_llm.training.watchdog import STUCK, Watchdog

HANGS = """
import sys, time
from pathlib import Path
from user_llm.training.watchdog import Watchdog

def waits_for_ever():
    time.sleep(60)

with Watchdog(1.0, Path(sys.argv[1])) as watchdog:
    for _ in range(8):  # longer than the limit in all
        time.sleep(0.2)
        watchdog.beat()
    print("went on", flush=True)
    waits_for_ever()
"""


@pytest.mark.slow
def test_a_process_that_makes_no_step_ends_and_says_where_it_was(tmp_path):
    ended = subprocess.run(
        [sys.executable, "-c", HANGS, tmp_path], capture_output=True, text=True, timeout=120
    )
    assert (ended.returncode, ended.stdout) == (STUCK, "went on\n")
    assert STUCK >= 127  # which starts a job anew
    assert "stuck-0.txt says where every thread is" in ended.stderr
    assert "in waits_for_ever" in (tmp_path / "stuck-0.txt").read_text()


def test_errors_and_ends_pass_through(tmp_path):
    with pytest.raises(RuntimeError, match="own"), Watchdog(0.0, tmp_path):
        raise RuntimeError("its own")
    with Watchdog(5.0, tmp_path) as watchdog:
        watchdog.beat()
    assert not list(tmp_path.iterdir())
