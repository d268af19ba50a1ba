"""What `make test` leaves out: tests that take many seconds and are much like others that run.

They run where TORTURE_SCALE is set: `TORTURE_SCALE=1 make test`, and those in tests/torture with `make torture`, too.
"""

import os

import pytest

FULL = bool(os.environ.get("TORTURE_SCALE"))

ONLY_IN_FULL = pytest.mark.skipif(not FULL, reason="many seconds, much like another: TORTURE_SCALE=1 runs it")
