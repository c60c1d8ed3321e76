"""test_edge_input.py and test_limits.py for the Triton faces."""

from __future__ import annotations

import pytest
from ops.test_edge_input import *  # noqa: F403
from ops.test_limits import *  # noqa: F403
from ops.triton_device import DEVICE

pytestmark = pytest.mark.skipif(DEVICE != "cpu", reason="doors look at values on the CPU only")
del test_the_library_survives_direct_calls  # noqa: F821  (the C++ library has no part in this)


@pytest.fixture
def backend() -> str:
    return "triton"
