"""The report on how a prompt set was read."""

from __future__ import annotations

from worldr1.config import TrainConfig
from worldr1.prompts.reading import ReadingReport, limit_lines, reading_lines, summarise_reading
from worldr1.prompts.sampler import read_prompts

ONE_OF_EACH = [
    "The camera pans left.",
    "Static shot of a lake.",
    "A red ball.",
    "The camera swoops over a red ball.",
    "The camera follows a dog, then pans left.",
    "The camera Follows a cat.",
    "The camera is static, then it swoops.",
]


def test_counts_of_a_prompt_set() -> None:
    report = summarise_reading(ONE_OF_EACH)
    assert report == ReadingReport(2, 1, 1, 3, 1, (("swoops over a red", 2), ("follows a dog", 2)))
    assert report.num_prompts == len(ONE_OF_EACH)
    assert report.lines() == [
        "camera words: 2 of 7 prompts ask for a motion, 1 for rest, 1 say nothing of the camera's motion, "
        "3 were not understood",
        "  S_traj is left out for 4 of them and their initial noise is plain: no camera is asked for",
        '  not understood, in 4 of them: "swoops over a red" x2, "follows a dog" x2',
        '  python -m worldr1.camera "PROMPT" shows how a prompt is read; docs/camera.md has the words',
    ]


def test_the_examples_are_the_most_frequent_and_few() -> None:
    verbs = ["swoops", "dives", "spirals", "weaves", "shakes", "wanders", "spins"]
    prompts = [f"The camera {verb} over a hill." for k, verb in enumerate(verbs, start=1) for _ in range(k)]
    report = summarise_reading(prompts)
    assert [count for _, count in report.unread] == [7, 6, 5, 4, 3, 2, 1]
    assert report.lines()[2] == (
        '  not understood, in 28 of them: "spins over a hill" x7, "wanders over a hill" x6, "shakes over a hill" x5, '
        '"weaves over a hill" x4, "spirals over a hill" x3, ...'
    )


def test_the_micro_prompts_all_ask() -> None:
    config = TrainConfig()
    lines = reading_lines(read_prompts(config.prompts), read_prompts(config.dynamic_prompts))
    assert [line.partition(" say ")[0] for line in lines] == [
        "camera words: 85 of 96 prompts ask for a motion, 11 for rest, 0",
        "camera words, dynamic prompts: 0 of 64 prompts ask for a motion, 64 for rest, 0",
    ]


def test_motions_beyond_the_text_encoder_are_said() -> None:
    prompts = ["Pan left. A ball.", "Pan left. A ball that is round and red.", "A red ball on a floor. Then zoom out."]

    def split(prompt: str) -> tuple[str, str]:
        return prompt[:22], prompt[22:]

    assert limit_lines(prompts[:1], split) == []
    assert limit_lines(prompts, split) == [
        "text: 2 of 3 prompts go on beyond the tokens that the text encoder takes",
        '  1 of them name camera motions there, which the model never sees: "Then zoom out."',
    ]
    assert limit_lines([prompts[2][:24] + "pan left, " * 20], split)[1].endswith(', pan left, pan left, pan le..."')
    assert reading_lines(prompts[:1], prompts[2:], split)[-2].startswith("text: 1 of 2 prompts")


def test_a_set_without_dynamic_prompts_has_no_line_of_them() -> None:
    assert len(reading_lines(["Pan left."], [])) == 1
    assert summarise_reading([]).num_prompts == 0
