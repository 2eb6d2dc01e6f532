from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fakes import PROMPTS, fake_config
from hypothesis import given
from hypothesis import strategies as st

from worldr1.config import EvaluationConfig, PhaseConfig, RolloutConfig
from worldr1.prompts.sampler import (
    HELD_OUT_IDS,
    held_out_batch,
    is_dynamic,
    iterations_before,
    prompt_batch,
    read_prompts,
)


def batch_of(iteration=0, rank=0, world_size=1, dynamic=False, **changes):
    return prompt_batch(
        PROMPTS, config=fake_config(**changes), iteration=iteration, dynamic=dynamic, rank=rank, world_size=world_size
    )


def test_group_size_is_exact_from_the_first_iteration():
    for iteration in range(5):
        batch = batch_of(iteration)
        assert len(batch.prompts) == 4 and batch.group_size == 4 and len(batch.sample_ids) == 16
        assert batch.viewmats.shape == (4, 9, 4, 4)
        repeated = batch.repeat(torch.arange(4))
        assert repeated.tolist() == [k for k in range(4) for _ in range(4)]


def test_sample_ids_are_unique_over_iterations_and_ranks():
    ids = [i for it in range(6) for rank in range(2) for i in batch_of(it, rank, 2).sample_ids.tolist()]
    assert ids == list(range(6 * 16))


def test_ranks_together_hold_what_one_rank_holds():
    for iteration in range(4):
        whole = batch_of(iteration)
        parts = [batch_of(iteration, rank, 2) for rank in range(2)]
        assert whole.prompts == parts[0].prompts + parts[1].prompts
        assert torch.equal(whole.sample_ids, torch.cat([p.sample_ids for p in parts]))
        assert torch.equal(whole.viewmats, torch.cat([p.viewmats for p in parts]))


def test_epochs_are_without_replacement():
    # 4 prompts an iteration from 6: after 3 iterations two whole epochs.
    drawn = [p for iteration in range(3) for p in batch_of(iteration).prompts]
    assert set(Counter(drawn[:6]).values()) == {1} and set(Counter(drawn).values()) == {2}
    assert drawn[:6] != drawn[6:], "each epoch is shuffled anew"


def test_order_depends_on_the_seed_and_the_phase_only():
    assert batch_of(seed=0).prompts == batch_of(seed=0).prompts
    assert any(batch_of(i, seed=0).prompts != batch_of(i, seed=1).prompts for i in range(3))
    # A dynamic iteration in between does not consume main prompts.
    phase = PhaseConfig(main_iterations=1, dynamic_iterations=1)
    assert batch_of(2, phase=phase).prompts == batch_of(1, phase=PhaseConfig(1, 0)).prompts


def test_no_two_of_seeds_and_phases_share_a_shuffle():
    # The first three iterations of each phase, two epochs of the same file.
    phase = PhaseConfig(main_iterations=3, dynamic_iterations=3)
    orders = {
        (seed, dynamic): tuple(
            p for i in range(3) for p in batch_of(3 * dynamic + i, dynamic=dynamic, seed=seed, phase=phase).prompts
        )
        for seed in range(3)
        for dynamic in (False, True)
    }
    assert len(set(orders.values())) == 6


@given(st.integers(0, 500), st.integers(1, 9), st.integers(0, 5))
def test_phase_counts(iteration, main, dynamic):
    phase = PhaseConfig(main, dynamic)
    for kind in (False, True):
        counted = sum(is_dynamic(i, phase) == kind for i in range(iteration))
        assert iterations_before(iteration, phase, dynamic=kind) == counted


def test_more_prompts_than_the_file_holds():
    batch = batch_of(rollout=RolloutConfig(group_size=4, prompts_per_iteration=14, micro_batch=8))
    assert set(Counter(batch.prompts).values()) <= {2, 3} and len(batch.prompts) == 14


@pytest.mark.parametrize("world_size", [3, 17])
def test_samples_that_do_not_divide_among_ranks(world_size):
    with pytest.raises(ValueError, match=f"multiple of the {world_size} ranks, got 16"):
        batch_of(world_size=world_size)


def test_held_out_batch_shares_and_ids():
    config = replace(fake_config(), evaluation=EvaluationConfig(num_samples=13))
    whole = held_out_batch(PROMPTS, config=config, rank=0, world_size=1)
    parts = [held_out_batch(PROMPTS, config=config, rank=r, world_size=2) for r in range(2)]
    assert [len(p.prompts) for p in parts] == [7, 7]
    assert (parts[0].prompts + parts[1].prompts)[:13] == whole.prompts
    assert torch.cat([p.sample_ids for p in parts])[:13].tolist() == list(range(HELD_OUT_IDS, HELD_OUT_IDS + 13))
    assert max(Counter(whole.prompts).values()) - min(Counter(whole.prompts).values()) <= 1


def test_a_batch_says_which_prompts_ask_for_a_camera():
    prompts = ["Pan left.", "A red ball.", "Static shot of a ball.", "The camera swoops over a ball."]
    asks = {p: a for p, a in zip(prompts, [True, False, True, False], strict=True)}
    batch = prompt_batch(prompts, config=fake_config(), iteration=0, dynamic=False, rank=0, world_size=1)
    held_out = held_out_batch(prompts, config=fake_config(), rank=0, world_size=1)
    for made in (batch, held_out):
        assert made.asked.dtype == torch.bool
        assert made.asked.tolist() == [asks[p] for p in made.prompts]
    assert bool(batch_of().asked.all())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "at least one prompt"),
        (b"\n  \n", "at least one prompt"),
        (b"fine\nM\xe9lange\n", "byte 0xe9 in line 2"),
        (None, "No such file"),
    ],
    ids=["empty", "blank", "latin1", "missing"],
)
def test_bad_prompt_files(tmp_path, content, message):
    path = tmp_path / "prompts.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_prompts(path)


def test_prompt_file_with_bom_crlf_and_blank_lines(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\n\r\n  zw\xc3\xb6lf  \n")
    assert read_prompts(path) == ["one", "zwölf"]


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"one\rtwo\r\nthree\n\nfour", ["one", "two", "three", "four"]),
        (b"one\n\xef\xbb\xbftwo\n", ["one", "two"]),  # files joined by cat, each with its mark
        (b"one\none\n", ["one", "one"]),  # drawn twice as often
        (b"# a comment\n#\n#sunset over a bay\n  # indented\none # two\n#\ttab\n", ["#sunset over a bay", "one # two"]),
        ("\u3000pan left\u00a0\n".encode(), ["pan left"]),
    ],
)
def test_prompt_files_as_people_have_them(tmp_path, raw, expected):
    path = tmp_path / "prompts.txt"
    path.write_bytes(raw)
    assert read_prompts(path) == expected


@pytest.mark.parametrize(
    ("raw", "match"),
    [
        (
            "Camera pan left.\n".encode("utf-16-le"),
            "a NUL character in line 1: UTF-16 without a mark.*save it as UTF-8",
        ),
        ("Camera pan left.\n".encode("utf-16-be"), "a NUL character in line 1"),
        ("Camera pan left.\n".encode("utf-16"), "got UTF-16; save it as UTF-8"),
        ("Camera pan left.\n".encode("utf-32"), "save it as UTF-8"),
        (b"one\ntwo\0\n", "a NUL character in line 2"),
        ("caf\u00e9\n".encode("latin-1"), "got byte 0xe9 in line 1"),
        (b"", "got an empty file"),
        (b"\xef\xbb\xbf\r\n", "at least one prompt"),
        (b"# nothing\n\n", "empty lines and comments alone"),
    ],
)
def test_what_is_no_prompt_file_is_refused_with_what_to_do(tmp_path, raw, match):
    path = tmp_path / "prompts.txt"
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=f"prompts: .*prompts.txt must .*{match}"):
        read_prompts(path)


def test_no_prompt_of_ours_is_a_comment():
    import worldr1

    for file in (Path(worldr1.__file__).parent / "assets" / "prompts").glob("*.txt"):
        lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        assert read_prompts(file) == lines
