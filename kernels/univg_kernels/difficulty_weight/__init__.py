"""The door of `difficulty_weight`."""

from __future__ import annotations

from torch import Tensor

from .._checks import FLOATS, check_positive, check_tensor
from .._dispatch import Backend, face
from .._rows import math_dtype
from ..config import CHOICES, check_choice, check_flag, check_normalize


def difficulty_weight(
    miou: Tensor, *, kind: str = "exp", power: float = 1.0, normalize: bool = False, backend: Backend = "auto"
) -> Tensor:
    """phi(mIoU) of each group: how much its policy term counts; hard groups count more.

    exp: e^(1 - m) · power: (1.05 - m)^power · log: -ln(0.02 + m), negative above m = 0.98 · none: 1.

    Args:
        miou: [K] floating point, mean accuracy reward of each group, 0 to 1.
        kind, power: the formula.
        normalize: divide by the mean over the K groups given, so that phi does not change the learning rate; not for
            "log", whose mean may be 0 or negative.
    Returns: [K] fp32 (fp64 for fp64 input), not differentiable.
    Raises: ValueError for a wrong shape, dtype or kind.
    Source: UniVG-R1, https://github.com/AMAP-ML/UniVG-R1 (the normalisation is ours).
    """
    m = check_tensor("difficulty_weight", "miou", miou, (None,), FLOATS)
    check_choice("difficulty_weight", "kind", kind, CHOICES["difficulty"])
    check_positive("difficulty_weight", "power", power)
    check_flag("difficulty_weight", "normalize", normalize)
    check_normalize("difficulty_weight", kind, normalize)
    impl = face("difficulty_weight", m.device, backend)
    return impl.difficulty_weight(m.detach().to(math_dtype(m)), kind, float(power), normalize)
