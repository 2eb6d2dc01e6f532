"""Writes depth_anything.npz: what the package's own class makes of an untrained folder. No test; run by hand.

It runs in an environment of the package, not the trainer's: numpy < 2, depth-anything-3 0.1.1 with its dependencies
(OpenCV, e3nn, evo, torchvision, moviepy 1.0.3, pycolmap, trimesh, plyfile ...).

    # the trainer's environment: TINY is written by worldr1.rehearsal.depth_anything.save_tiny_depth_anything
    # the package's: python tests/worldr1/rewards/judges/record_depth_anything.py TINY OUT.npz
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np

SIZE = 98
STRIDE, EVERY = 7, 61  # of the pixels and of the Gaussians that are kept
RESIZED = ((64, 96, 98), (90, 160, 98), (120, 168, 84), (117, 50, 126), (97, 240, 112))
"""Height, width, size: enlarged twice; reduced, then enlarged; reduced; tall; reduced twice."""


def picture(height: int, width: int, t: int = 0) -> np.ndarray:
    """Frame t of a moving pattern, [H, W, 3] uint8, in whole numbers, the same everywhere."""
    y, x = np.mgrid[0:height, 0:width].astype(np.int64)
    waves = [(x * 5 + y * 3 + t * 11) % 256, (x * y // 7 + t * 17) % 256, ((x // 9 + y // 8 + t) % 2) * 180 + 30]
    return np.stack(waves, axis=-1).astype(np.uint8)


def main(folder: Path, out: Path) -> None:
    import torch

    library = torch.library.Library("torchvision", "DEF")
    for op in ("nms", "qnms"):  # torchvision imports without its compiled half, which is not used
        try:
            library.define(f"{op}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        except RuntimeError:
            pass
    from depth_anything_3.api import DepthAnything3
    from depth_anything_3.registry import MODEL_REGISTRY
    from safetensors import safe_open

    config = json.loads((folder / "config.json").read_text())
    found: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory() as scratch:
        yaml = Path(scratch) / "tiny.yaml"
        yaml.write_text(json.dumps(config["config"]))  # JSON is YAML
        MODEL_REGISTRY[config["model_name"]] = str(yaml)
        model = DepthAnything3.from_pretrained(str(folder)).eval()
        model.save_pretrained(Path(scratch) / "saved")
        assert json.loads((Path(scratch) / "saved" / "config.json").read_text())["model_name"] == config["model_name"]
        with safe_open(Path(scratch) / "saved" / "model.safetensors", "pt") as file:
            found["keys"] = np.array(sorted(file.keys()))
    for height, width, size in RESIZED:
        pixels, _, _ = model._preprocess_inputs([picture(height, width)], process_res=size)
        mean, std = np.array([0.485, 0.456, 0.406])[:, None, None], np.array([0.229, 0.224, 0.225])[:, None, None]
        found[f"resized_{height}_{width}_{size}"] = np.rint(255 * (pixels[0].numpy() * std + mean)).astype(np.uint8)
    video = [picture(64, 96, t) for t in range(9)]

    def infer(prefix: str) -> None:
        p = model.inference(video, infer_gs=True, process_res=SIZE, ref_view_strategy="first")
        found[prefix + "extrinsics"], found[prefix + "intrinsics"] = p.extrinsics, p.intrinsics
        found[prefix + "depth"], found[prefix + "conf"] = (x[:, ::STRIDE, ::STRIDE] for x in (p.depth, p.conf))
        for name in ("means", "scales", "rotations", "opacities"):
            found[prefix + name] = getattr(p.gaussians, name)[0, ::EVERY].numpy()
        found[prefix + "dc"] = p.gaussians.harmonics[0, ::EVERY, :, 0].numpy()

    infer("half_")  # as it comes: on a CPU its backbone runs under float16 autocast
    with torch.no_grad():
        model.forward = model.model.forward  # the same without autocast
        infer("")
    np.savez_compressed(out, **found)
    print(out.stat().st_size, "bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
