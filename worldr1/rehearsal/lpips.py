"""An LPIPS folder of the real class with untrained weights, which takes small images as they are."""

from __future__ import annotations

from pathlib import Path

import torch

from worldr1.rewards.judges.lpips import LPIPS


def save_tiny_lpips(folder: Path, *, seed: int = 0) -> Path:
    """Write AlexNet's 2.5 M parameters, drawn at random, and heads that weigh every channel; returns the folder.

    min_side is 32, so that small frames are not enlarged: a pair of 32x32 takes 2 ms on a core, one of 256x256 60 ms.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = LPIPS(net="alex", min_side=32)
        with torch.no_grad():
            for head in network.heads:
                head.copy_(torch.rand_like(head) / len(head))
    network.save_pretrained(folder)
    return folder
