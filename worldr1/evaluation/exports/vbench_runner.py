"""Runs inside VBench's environment, by its interpreter, and imports nothing of ours.

python vbench_runner.py VIDEOS PROMPTS_JSON RESULTS_DIR RESULT_JSON DEVICE DIMENSION ...
"""

import importlib
import json
import shutil
import sys
from pathlib import Path


def main(videos: str, prompts: str, results: str, result: str, device: str, *dimensions: str) -> None:
    """VBench on custom input; its results are copied to `result`."""
    with open(prompts, encoding="utf-8") as file:
        prompt_of = json.load(file)
    torch = importlib.import_module("torch")
    judge = importlib.import_module("vbench").VBench(torch.device(device), "", results)
    judge.evaluate(
        videos_path=videos, name="worldr1", prompt_list=prompt_of, dimension_list=list(dimensions), mode="custom_input"
    )
    shutil.copyfile(f"{results}/worldr1_eval_results.json", result)


if __name__ == "__main__":
    # This folder, which Python puts first, has a vbench.py of its own.
    sys.path = [folder for folder in sys.path if Path(folder).resolve() != Path(__file__).resolve().parent]
    main(*sys.argv[1:])
