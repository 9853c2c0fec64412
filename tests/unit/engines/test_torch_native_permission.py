"""Machine code of our own is not made where the system would not let it run."""

import subprocess
import sys

import pytest

from llmhost.engines.torch.native.permission import may_run_what_it_writes

ASK = """
import ctypes
from llmhost.engines.torch.native.permission import may_run_what_it_writes
PR_SET_MDWE, REFUSE_EXEC_GAIN = 65, 1
if ctypes.CDLL(None).prctl(PR_SET_MDWE, REFUSE_EXEC_GAIN, 0, 0, 0) == 0:
    print(may_run_what_it_writes())
"""


def test_a_process_that_may_not_run_what_it_writes_is_told_so() -> None:
    asked = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True, check=True)
    if not asked.stdout:
        pytest.skip("this kernel can't forbid it")
    assert asked.stdout == "False\n"


def test_others_may() -> None:
    assert may_run_what_it_writes()
