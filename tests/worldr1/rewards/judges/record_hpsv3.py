"""Scores of the package's own HPSv3 class on the rehearsal's weights, for test_hpsv3.py to compare with.

Needs two environments, since the package is pinned to transformers 4.45.2. From the root of the checkout:

    python -c "from worldr1.rehearsal.hpsv3 import save_tiny_hpsv3 as s; s('TINY')"       # the project's own
    python -m venv PACKAGE                                                               # Python 3.11
    PACKAGE/bin/pip install torch==2.13.0 transformers==4.45.2 trl==0.11.4 peft==0.13.2 datasets pandas matplotlib \\
        tensorboard fire omegaconf rich pillow
    PACKAGE/bin/pip install --no-deps hpsv3==1.0.0
    PYTHONPATH=. PACKAGE/bin/python tests/worldr1/rewards/judges/record_hpsv3.py TINY

torchvision may be missing: the package imports it for videos and tensors, and pictures go through PIL; an empty module
then takes its place. The network is cast to bfloat16 and back, as far as the package's loader casts it: weights are
unchanged by it (they are stored so), the frequencies of the rotary embeddings stay rounded.
"""

from __future__ import annotations

import hashlib
import json
import sys
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

RECORD = Path(__file__).with_name("hpsv3_recorded.json")
SIZES = ((480, 832), (64, 96), (96, 64), (300, 300), (28, 1400))
"""Height and width of the pictures: one that shrinks, small ones that grow, a strip."""
PROMPTS = (
    "a red ball on a green floor",
    'The camera pans left over "Aïn Sefra", {slowly}, 50 % closer;\n\ta \N{BACTRIAN CAMEL} turns.  ',
    "",
)
CASES = [(size, prompt) for size in SIZES for prompt in PROMPTS]


def picture(height: int, width: int) -> np.ndarray:
    """A picture [H, W, 3] uint8: waves and some noise, of its size alone."""
    draws = np.random.default_rng([height, width])
    y, x = np.mgrid[:height, :width] / max(height, width)
    waves = [np.sin(a * x + b * y + c) for a, b, c in draws.uniform(2, 20, (3, 3))]
    noisy = 127.5 + 90 * np.stack(waves, axis=-1) + draws.normal(0, 12, (height, width, 3))
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)


def levels(pixel_values: np.ndarray) -> np.ndarray:
    """Patches [T, 1176] as an image processor gives them -> their levels 0 ... 255: free of the last bit of a float."""
    mean, std = np.array([[0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]])[:, :, None]
    colours = pixel_values.reshape(len(pixel_values), 3, 2 * 14 * 14).astype(np.float64)
    return np.rint((colours * std + mean) * 255).astype(np.uint8)


def digest(array: np.ndarray) -> str:
    """sha256 of an array's bytes."""
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def _package() -> ModuleType:
    """hpsv3.inference, with an empty torchvision where there is none."""
    from trl import RewardTrainer  # noqa: F401  (it and transformers look for torchvision: before it is replaced)

    try:
        import torchvision  # noqa: F401
    except Exception:
        names = ("torchvision", "torchvision.io", "torchvision.transforms", "torchvision.transforms.functional")
        empty: dict[str, Any] = {name: ModuleType(name) for name in names}
        for name, module in empty.items():
            module.__path__, module.InterpolationMode = [], None
            parent, _, leaf = name.rpartition(".")
            if parent:
                setattr(empty[parent], leaf, module)
        sys.modules.update(empty)
    import hpsv3.inference

    return hpsv3.inference


def _inferencer(package: ModuleType, folder: Path) -> Any:
    """The package's object as its constructor leaves it, without the download that it asks for."""
    import torch
    from safetensors.torch import load_file
    from transformers import Qwen2TokenizerFast, Qwen2VLConfig, Qwen2VLImageProcessor, Qwen2VLProcessor

    # Qwen2-VL's chat of one turn with its default system text.
    frame = (
        "{% for m in messages %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>{{ m.role }}\n"
        "{% for c in m.content %}{% if c.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}"
        "{{ c.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}<|im_start|>assistant{{ '\n' }}"
    )
    tokenizer = Qwen2TokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), pad_token="<|endoftext|>", padding_side="right"
    )
    processor = Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor.from_pretrained(folder), tokenizer=tokenizer, chat_template=frame
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|Reward|>"]})
    reward = tokenizer.convert_tokens_to_ids(["<|Reward|>"])
    config = Qwen2VLConfig.from_pretrained(folder)
    config._attn_implementation = "sdpa"
    config.pad_token_id = tokenizer.pad_token_id
    from hpsv3.model.qwen2vl_trainer import Qwen2VLRewardModelBT

    model = Qwen2VLRewardModelBT(
        config, output_dim=2, reward_token="special", special_token_ids=reward, rm_head_type="ranknet"
    )
    model.resize_token_embeddings(len(tokenizer))
    model.to(torch.bfloat16)
    model.rm_head.to(torch.float32)
    model.load_state_dict(load_file(folder / "HPSv3.safetensors"), strict=True)
    model.eval()
    inferencer = object.__new__(package.HPSv3RewardInferencer)
    inferencer.model, inferencer.processor, inferencer.device = model, processor, "cpu"
    inferencer.use_special_tokens = True
    return inferencer


def main(folder: Path) -> None:
    """Write RECORD."""
    import torch
    from PIL import Image

    from worldr1.rewards.judges.hpsv3 import read_instruction

    package = _package()
    # What is read from its source must be what its import gives.
    question = package.INSTRUCTION + package.prompt_with_special_token
    assert read_instruction(folder / "nowhere") == question
    inferencer = _inferencer(package, folder)
    model = inferencer.model

    def scores(cases: list[Any]) -> list[list[float]]:
        with torch.no_grad():
            pictures = [Image.fromarray(picture(*size)) for size, _ in cases]
            return inferencer.reward(pictures, [prompt for _, prompt in cases]).tolist()

    # Its own words first, then those of the rehearsal; it puts them together in the same way.
    model.float()
    model.visual.rotary_pos_emb.to(torch.bfloat16)
    record: dict[str, Any] = {
        "versions": {name: version(name) for name in ("hpsv3", "torch", "transformers", "tokenizers", "pillow")},
        "package_instruction_sha256": hashlib.sha256(question.encode()).hexdigest(),
        "package_instruction_score": scores(CASES[:1])[0],
    }
    own = (folder / "instruction.txt").read_bytes().decode()
    package.INSTRUCTION, package.prompt_with_special_token = (
        own[: own.index("<|Reward|>")],
        own[own.index("<|Reward|>") :],
    )
    batches = [inferencer.prepare_batch([Image.fromarray(picture(*s))], [p]) for s, p in CASES]
    record["token_ids"] = [digest(b["input_ids"].numpy().astype(np.int64)) for b in batches]
    record["num_tokens"] = [b["input_ids"].shape[1] for b in batches]
    record["pixels"] = [digest(levels(b["pixel_values"].numpy())) for b in batches]
    record["pixel_mean"] = [float(b["pixel_values"].double().mean()) for b in batches]
    record["grid"] = [b["image_grid_thw"][0].tolist() for b in batches]
    record["one_by_one"] = [scores([case])[0] for case in CASES]
    record["together"] = scores(CASES)
    model.visual.rotary_pos_emb.float()
    record["float32_vision_angles"] = [scores([case])[0] for case in CASES]
    model.to(torch.bfloat16)
    model.rm_head.float()
    model.rm_head.register_forward_pre_hook(lambda _, args: (args[0].float(),))  # on a GPU its autocast does this
    record["bfloat16"] = [scores([case])[0] for case in CASES]
    RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"{RECORD}: {len(CASES)} cases, scores {np.array(record['one_by_one'])[:, 0].round(3).tolist()}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
