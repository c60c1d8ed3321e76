"""The one list of shapes: which sizes each op is measured at, on each kind of device."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Shape:
    """rows N of responses of `length` tokens each · vocab V · width H of the hidden states (0: no linear head)."""

    rows: int
    vocab: int = 0
    length: int = 64
    width: int = 0
    dtypes: tuple[str, ...] = ("fp32", "bf16")

    def __str__(self) -> str:
        return "x".join(str(x) for x in (self.rows, self.width, self.vocab) if x)

    def proof(self) -> Shape:
        """What correctness is shown at: the timed vocabulary, fewer rows and a narrower head, so that fp64 is cheap.
        Five responses of 64 are still two chunks of the linear head on the CPU."""
        length = min(self.length, 64 if self.width else 32)
        rows = (5 if self.width else 2) * length if self.vocab else self.rows
        return replace(self, rows=min(self.rows, rows), length=length, width=min(self.width, 64))


QWEN2_2B = 151936  # also Qwen2.5-VL-3B; not a multiple of 256
QWEN2_7B = 152064  # also Qwen2.5-VL-7B

FP32, BF16 = ("fp32",), ("bf16",)
Shapes = dict[str, tuple[Shape, ...]]
# The first shape of an op is the one that the targets of the project are about.
CPU: Shapes = {
    "grpo_loss": (Shape(512, QWEN2_2B), Shape(2048, 32768)),
    "selective_logprob": (Shape(512, QWEN2_2B),),
    "linear_grpo_loss": (Shape(2560, QWEN2_2B, width=896, dtypes=FP32),),  # 40 responses, a model of 0.5B
    "linear_peers": (Shape(512, QWEN2_2B, width=896),),  # where slow peers and autograd contracts are compared
    "policy_loss": (Shape(65536, length=256, dtypes=FP32),),
    "groups": (Shape(8192, length=1, dtypes=FP32),),  # responses
    "box_iou": (Shape(100_000, length=1, dtypes=FP32),),
    "matched_iou": (Shape(1000, length=8, dtypes=FP32),),  # pairs of sets
    "completions": (Shape(10_000, length=256, dtypes=FP32),),
    "shared_prefix_attention": (Shape(512, length=64, width=512),),
}
SMALL_OPS: Shapes = {name: CPU[name] for name in ("policy_loss", "groups", "box_iou")}
CUDA: Shapes = {
    "grpo_loss": (Shape(8192, QWEN2_7B, 256, dtypes=BF16), Shape(1024, QWEN2_7B, 256), Shape(8192, 32768, 256)),
    "selective_logprob": (Shape(8192, QWEN2_7B, 256, dtypes=BF16),),
    "linear_grpo_loss": (Shape(8192, QWEN2_7B, 256, 3584, dtypes=BF16),),
    "linear_peers": (Shape(8192, QWEN2_7B, 256, 3584, dtypes=BF16), Shape(2048, QWEN2_7B, 256, 3584, dtypes=BF16)),
    "shared_prefix_attention": (Shape(2048, length=256, width=3584, dtypes=BF16),),
    **SMALL_OPS,
}
TINY: Shapes = {  # for tests: the same code in a moment; a vocabulary that allows no wide loads
    "grpo_loss": (Shape(24, 331, 8),),
    "selective_logprob": (Shape(24, 331, 8),),
    "linear_grpo_loss": (Shape(24, 331, 8, 16),),
    "linear_peers": (Shape(24, 331, 8, 16),),
    "policy_loss": (Shape(64, length=8, dtypes=FP32),),
    "groups": (Shape(32, length=1, dtypes=FP32),),
    "box_iou": (Shape(200, length=1, dtypes=FP32),),
    "matched_iou": (Shape(10, length=4, dtypes=FP32),),
    "completions": (Shape(20, length=256, dtypes=FP32),),
    "shared_prefix_attention": (Shape(24, length=8, width=64),),
}
SIZES = {"cpu": CPU, "cuda": CUDA, "tiny": TINY}
