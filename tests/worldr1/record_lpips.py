"""What the `lpips` package itself says of random weights and images: `python tests/worldr1/record_lpips.py` in an
environment with lpips 0.1.4, torchvision and torch writes rewards/judges/lpips_reference.npz.

Weights and images are drawn by numpy, so that the file holds only what came out.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np

REFERENCE = Path(__file__).parent / "rewards" / "judges" / "lpips_reference.npz"

# out, in, kernel of every convolution.
CONVS = {
    "alex": [(64, 3, 11), (192, 64, 5), (384, 192, 3), (256, 384, 3), (256, 256, 3)],
    "vgg": [(64, 3, 3), (64, 64, 3), (128, 64, 3), (128, 128, 3), (256, 128, 3), (256, 256, 3), (256, 256, 3),
            (512, 256, 3), (512, 512, 3), (512, 512, 3), (512, 512, 3), (512, 512, 3), (512, 512, 3)],
}  # fmt: skip
CHANNELS = {"alex": [64, 192, 384, 256, 256], "vgg": [64, 128, 256, 512, 512]}


@cache
def draw_weights(net: str) -> tuple[list[tuple[np.ndarray, np.ndarray]], list[np.ndarray]]:
    """(weight, bias) of every convolution and the five heads [C], float32."""
    rng = np.random.default_rng(len(CONVS[net]))
    convs = []
    for out, wide, k in CONVS[net]:
        weight = rng.standard_normal((out, wide, k, k), dtype=np.float32) * np.float32((2 / (wide * k * k)) ** 0.5)
        convs.append((weight, rng.standard_normal(out, dtype=np.float32) * np.float32(0.1)))
    return convs, [rng.random(c, dtype=np.float32) for c in CHANNELS[net]]


def draw_images() -> tuple[np.ndarray, np.ndarray]:
    """Two batches [3, 3, 64, 80] in [0, 1]; sides that no stride divides are covered by the published examples."""
    rng = np.random.default_rng(7)
    a = rng.random((3, 3, 64, 80), dtype=np.float32)
    return a, np.clip(a + 0.2 * rng.standard_normal(a.shape, dtype=np.float32), 0, 1)


def main() -> None:
    """Record."""
    import torch

    # torchvision declares these with its compiled part; the networks need none of them.
    for op in ("nms", "qnms", "roi_align", "_roi_align_backward", "roi_pool", "_roi_pool_backward", "ps_roi_align",
               "_ps_roi_align_backward", "ps_roi_pool", "_ps_roi_pool_backward", "deform_conv2d",
               "_deform_conv2d_backward"):  # fmt: skip
        if not hasattr(torch.ops.torchvision, op):
            torch.library.define(f"torchvision::{op}", "(Tensor x) -> Tensor")
    import lpips
    import torchvision

    found: dict[str, np.ndarray] = {}
    a, b = (torch.from_numpy(x) for x in draw_images())
    for net in CONVS:
        model = lpips.LPIPS(net=net, pnet_rand=True, pretrained=False, verbose=False)
        convs, heads = draw_weights(net)
        layers = [m for m in model.net.modules() if isinstance(m, torch.nn.Conv2d)]
        with torch.no_grad():
            for layer, (weight, bias) in zip(layers, convs, strict=True):
                layer.weight.copy_(torch.from_numpy(weight))
                layer.bias.copy_(torch.from_numpy(bias))
            for lin, head in zip(model.lins, heads, strict=True):
                lin.model[1].weight.copy_(torch.from_numpy(head)[None, :, None, None])
            total, by_layer = model(a, b, normalize=True, retPerLayer=True)
            found[f"{net}_distance"] = total.flatten().numpy()
            found[f"{net}_layers"] = torch.stack([x.flatten() for x in by_layer]).numpy()
            found[f"{net}_self"] = model(a, a, normalize=True).flatten().numpy()
        trunk = torchvision.models.alexnet() if net == "alex" else torchvision.models.vgg16()
        found[f"{net}_trunk_keys"] = np.array([k for k in trunk.state_dict() if k.startswith("features")])
        path = Path(lpips.__file__).parent / "weights" / "v0.1" / f"{net}.pth"
        found[f"{net}_head_keys"] = np.array(list(torch.load(path, map_location="cpu", weights_only=True)))
    np.savez_compressed(REFERENCE, **found)
    print({k: v.tolist() for k, v in found.items()})


if __name__ == "__main__":
    main()
