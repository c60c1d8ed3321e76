"""What a GPU would refuse shows without one: on the `meta` device a host tensor in device arithmetic is an error."""

from __future__ import annotations

import numpy as np
from tiny import random_group, tiny_model

from univg_fast.packing import build_row


def test_the_grid_on_the_host_is_enough() -> None:
    rng, model = np.random.default_rng(0), tiny_model()
    row = build_row([random_group(rng, [(8, 8), (4, 6), (8, 8)], [3, 4])], model.family)
    assert model.to("meta").hidden(row.to("meta")).device.type == "meta"
