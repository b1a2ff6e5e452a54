"""What the number types of an encoder are worth on this machine."""

from __future__ import annotations

import time

import torch
from torch.nn import functional as F

_ROUNDS = 5


def bfloat16_gain() -> float:
    """How many times as fast as in float32 this CPU computes a convolution of a ResNet in bfloat16; takes some 0.1 s.

    Below 1 where the CPU lacks the instructions: PyTorch then computes in float32 and rounds.
    """
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        images, kernel = (torch.ones(shape, dtype=dtype) for shape in ((8, 64, 56, 56), (64, 64, 3, 3)))
        images, kernel = (each.to(memory_format=torch.channels_last) for each in (images, kernel))
        seconds[dtype] = min(_seconds(images, kernel) for _ in range(_ROUNDS))
    return seconds[torch.float32] / seconds[torch.bfloat16]


@torch.inference_mode()
def _seconds(images: torch.Tensor, kernel: torch.Tensor) -> float:
    begun = time.perf_counter()
    F.conv2d(images, kernel, padding=1)
    return time.perf_counter() - begun
