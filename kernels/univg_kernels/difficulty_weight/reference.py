"""phi from the group's mean accuracy: the specification."""

from __future__ import annotations

import torch
from torch import Tensor


def difficulty_weight(miou: Tensor, kind: str, power: float, normalize: bool) -> Tensor:
    if kind == "exp":  # e^(1 - m)
        phi = torch.exp(1.0 - miou)
    elif kind == "power":  # (1.05 - m)^power
        phi = (1.05 - miou) ** power
    elif kind == "log":  # -ln(0.02 + m); negative above m = 0.98
        phi = -torch.log(0.02 + miou)
    else:  # "none"
        phi = torch.ones_like(miou)
    return phi / phi.mean() if normalize and phi.numel() else phi
