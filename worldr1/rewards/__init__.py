"""Frozen judges of a video: camera path, 3D consistency, a novel view, and plain looks.

    stack = build_rewards(config, device="cpu")
    output = stack.score(batch, video)   # reward [N], valid [N], breakdown, reasons

docs/rewards.md has the formulas, the constants and what each term is blind to.
"""

from worldr1.rewards.combine import RewardStack, build_rewards

__all__ = ["RewardStack", "build_rewards"]
