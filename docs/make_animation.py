"""Draws the README's animation: held-out clips of a micro run before and after training, side by side.

python docs/make_animation.py --run runs/micro --out docs/images/before_after.webp

Nothing is chosen by its result: each column is the first held-out sample that asks for its motion, in the order of the
study, and both clips of a column start from the same noise. A frame is green where the evaluator, which no reward has
seen, reads the motion that was asked for, and red where it reads another.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from worldr1.microworld.captions import read_labels

SIZE, BORDER, GAP, HEAD, COLUMNS = 96, 4, 8, 22, 9
GREEN, RED, INK = (46, 160, 67), (207, 34, 46), (36, 41, 47)
MILLISECONDS = 160  # a frame; the film runs there and back


def first_of_each_motion(prompts: list[str]) -> dict[str, int]:
    """Motion -> number of the first prompt that asks for it."""
    found: dict[str, int] = {}
    labels = read_labels(prompts)
    for number, motion in enumerate(labels.motion.tolist()):
        found.setdefault(labels.motions[motion].replace("_", " "), number)
    return found


def picture(samples: dict[str, np.ndarray], shown: dict[str, int], frame: int) -> Image.Image:
    """One frame of all columns: the motion's name, the clip before, the clip after."""
    rows = -(-len(shown) // COLUMNS)
    cell = SIZE + 2 * BORDER
    block = HEAD + 2 * cell + 2 * GAP
    left = 54  # for the words at the side
    canvas = Image.new("RGB", (left + COLUMNS * (cell + GAP), rows * block), "white")
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(size=13)
    for place, (motion, number) in enumerate(shown.items()):
        x, top = left + place % COLUMNS * (cell + GAP), place // COLUMNS * block
        draw.text((x + cell / 2, top + HEAD / 2), motion, INK, font, anchor="mm")
        for side, name in enumerate(("before", "after")):
            y = top + HEAD + side * (cell + 3)
            if place % COLUMNS == 0:
                draw.text((left - 6, y + cell / 2), name, INK, font, anchor="rm")
            clip = samples[name][number, frame].transpose(1, 2, 0)
            image = Image.fromarray(clip).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
            colour = GREEN if samples[f"obeyed_{name}"][number] else RED
            draw.rectangle((x, y, x + cell - 1, y + cell - 1), fill=colour)
            canvas.paste(image, (x + BORDER, y + BORDER))
    return canvas


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=Path("runs/micro"), help="folder of a run of the micro world")
    parser.add_argument("--out", type=Path, default=Path("docs/images/before_after.webp"))
    options = parser.parse_args()
    with np.load(options.run / "evaluation" / "samples.npz") as file:
        samples = {name: file[name] for name in ("before", "after", "obeyed_before", "obeyed_after", "prompts")}
    shown = first_of_each_motion([str(prompt) for prompt in samples["prompts"]])
    count = samples["before"].shape[1]
    frames = [picture(samples, shown, frame) for frame in [*range(count), *range(count - 2, 0, -1)]]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    frames[0].save(options.out, save_all=True, append_images=frames[1:], duration=MILLISECONDS, loop=0, quality=82)
    print(f"{options.out}: {len(shown)} motions, {options.out.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
