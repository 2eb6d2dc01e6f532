"""The embedded policy: a plain WanPipeline folder whose parts do what the recipe says."""

import json

import pytest
import torch

from worldr1.config import EMBEDDED, ModelConfig
from worldr1.microworld.captions import MOTIONS, NUM_CONTENTS, all_captions, make_caption
from worldr1.microworld.dataset import draw_captions, held_out_clips
from worldr1.microworld.gates import autoencode
from worldr1.microworld.train_base import (
    BaseModel,
    TextTable,
    build_tokenizer,
    draw_prompts,
    train_base,
    write_pipeline,
)
from worldr1.microworld.train_vae import (
    build_vae,
    decode_unclamped,
    encode_clips,
    measure_psnr,
    refine_decoder,
)

FOLDER = EMBEDDED / "microwan"


@pytest.fixture(scope="module")
def pipeline():
    from diffusers import WanPipeline

    pipeline = WanPipeline.from_pretrained(FOLDER, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_the_folder_is_small_and_says_nothing_of_where_it_was_made():
    files = [f for f in FOLDER.rglob("*") if f.is_file()]
    assert sum(f.stat().st_size for f in files) < 6e6
    assert sum(f.stat().st_size for f in EMBEDDED.rglob("*") if f.is_file()) < 10e6
    for path in files:
        if path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
            assert "/tmp" not in path.read_text(encoding="utf-8")


def test_the_stock_pipeline_makes_the_video_that_our_sampler_makes(pipeline):
    """diffusers' own loop with an Euler step on the same grid against the policy adapter and `generate`."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    from worldr1.models.wan import load_policy
    from worldr1.rollout.sample import generate
    from worldr1.rollout.schedule import euler_sigmas

    texts = [make_caption("push_in", 3).text, make_caption("orbit_left", 12).text]
    noise = torch.randn(2, 12, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    sigmas = euler_sigmas(8, 2.0)
    ours = generate(load_policy(ModelConfig(path=FOLDER), device="cpu"), texts, noise, sigmas=sigmas, adapter=False)

    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    schedule = scheduler.set_timesteps
    scheduler.set_timesteps = lambda *_, device=None, **__: schedule(sigmas=list(sigmas[:-1]), device=device)
    pipeline.scheduler = scheduler
    theirs = pipeline(
        prompt=texts, height=32, width=32, num_frames=9, num_inference_steps=8, guidance_scale=1.0, latents=noise,
        max_sequence_length=24, output_type="pt",
    ).frames  # fmt: skip
    torch.testing.assert_close(ours, theirs.float(), rtol=0, atol=2e-3)


def test_autoencoder_reaches_its_gate_on_unseen_scenes(pipeline):
    assert measure_psnr(pipeline.vae, held_out_clips(24)) >= 27.0


def test_latent_normalisation_is_that_of_the_clips(pipeline):
    video = held_out_clips(96).batch(torch.arange(96))
    with torch.no_grad():
        latents = pipeline.vae.encode(video).latent_dist.mean
    config = pipeline.vae.config
    mean, std = (torch.tensor(v).view(-1, 1, 1, 1) for v in (config.latents_mean, config.latents_std))
    normalised = (latents - mean) / std
    assert normalised.mean((0, 2, 3, 4)).abs().max() < 0.15
    assert (normalised.std((0, 2, 3, 4)) - 1.0).abs().max() < 0.15


def test_unclamped_decode_is_decode_before_its_clamp(pipeline):
    latents = torch.randn(1, 12, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2.0
    with torch.no_grad():
        raw = decode_unclamped(pipeline.vae, latents)
        clamped = pipeline.vae.decode(latents, return_dict=False)[0]
    assert raw.abs().max() > 1.0
    torch.testing.assert_close(raw.clamp(-1, 1), clamped, rtol=0, atol=1e-5)


def test_autoencode_keeps_range_and_layout(pipeline):
    clips = held_out_clips(2)
    video = clips.video.float() / 255.0
    decoded = autoencode(pipeline.vae, video)
    assert decoded.shape == video.shape
    assert (decoded - video).abs().mean() < 0.05


def test_tokenizer_knows_every_word_and_refuses_no_text(pipeline):
    for caption in all_captions() + all_captions(dynamic=True):
        ids = pipeline.tokenizer(caption.text).input_ids
        assert len(ids) == len(caption.text.replace(".", " .").split()) + 1, caption.text  # a piece a word, and the end
        assert 2 not in ids
    assert 2 not in pipeline.tokenizer("A purple cat, slowly walking.").input_ids
    text = make_caption("pan_left", 5).text
    assert build_tokenizer()(text).input_ids == pipeline.tokenizer(text).input_ids


def test_prompt_draw_is_the_mixture_that_the_page_states():
    table = TextTable(build_tokenizer())
    captions = [make_caption("pan_left", 7)] * 6000 + [make_caption("fixed", 2, dynamic="falling")] * 2000
    rows = draw_prompts(captions, table, torch.Generator().manual_seed(0), right_camera=0.5, bare=0.0)
    static, dynamic = rows[:6000], rows[6000:]
    assert abs((static == table.empty).float().mean() - 0.1) < 0.015
    named = static[static != table.empty]
    counts = torch.bincount(named // NUM_CONTENTS, minlength=len(MOTIONS)) / len(named)
    expected = torch.full((9,), 0.5 / 8)
    expected[MOTIONS.index("pan_left")] = 0.5
    torch.testing.assert_close(counts, expected, rtol=0, atol=0.025)
    assert (named % NUM_CONTENTS == 7).all()  # the content is never wrong
    assert set(dynamic.tolist()) == {table.row[captions[-1].text], table.empty}
    half = draw_prompts(captions, table, torch.Generator().manual_seed(0), right_camera=0.5, bare=0.5)
    assert torch.equal(half <= table.empty - 1, rows <= table.empty - 1)  # the same tenth is dropped
    assert abs((half[:6000] > table.empty).float().mean() - 0.05) < 0.01


def test_the_camera_words_alone():
    tokenizer = build_tokenizer()
    table = TextTable(tokenizer)
    captions = [
        make_caption("orbit_left", 3),
        make_caption("pan_right", 15),
        make_caption("fixed", 1, dynamic="falling"),
    ]
    rows = torch.tensor([table.row[c.text] for c in captions] + [table.empty])
    bare = table.without_content(rows)
    expected = ["Camera orbit left.", "Camera pan right.", "Camera fixed."]
    for row, text in zip(bare[:3], expected, strict=True):
        assert table.ids[row][table.mask[row] > 0].tolist() == tokenizer(text).input_ids
    assert bare[3] == table.empty
    assert torch.equal(table.without_content(bare), bare)


def test_text_embedding_is_zero_beyond_its_tokens_and_does_not_depend_on_the_batch():
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    table, model = TextTable(tokenizer), BaseModel(len(tokenizer))
    with torch.no_grad():
        embeds = table.embed(model.text_encoder, torch.tensor([3, 150, 3]))
        alone = table.embed(model.text_encoder, torch.tensor([150]))
    assert embeds[0, int(table.mask[3].sum()) :].abs().max() == 0.0
    torch.testing.assert_close(embeds[0], embeds[2], rtol=0, atol=0)
    torch.testing.assert_close(embeds[1], alone[0], rtol=0, atol=1e-5)


def test_training_goes_on_where_it_was_cut(tmp_path):
    latents = torch.randn(8, 12, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    captions = draw_captions(8, seed=0, dynamic_share=0.2)
    seen = []

    def run(name: str, stop_at: int) -> BaseModel:
        def snapshot(_: BaseModel) -> None:
            seen.append(name)
            if seen.count(name) == stop_at:
                raise KeyboardInterrupt

        return train_base(
            latents, captions, checkpoint=tmp_path / name, num_steps=4, compiled=False, snapshot_every=1,
            on_snapshot=snapshot, log=lambda _: None,
        )  # fmt: skip

    whole = run("whole.pt", 0)
    with pytest.raises(KeyboardInterrupt):
        run("cut.pt", 2)
    cut = run("cut.pt", 0)
    assert seen == ["whole.pt"] * 4 + ["cut.pt"] * 4
    for a, b in zip(whole.parameters(), cut.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_refining_the_decoder_leaves_the_encoder_and_lowers_the_error(tmp_path):
    clips, held_out = held_out_clips(8, seed=3), held_out_clips(4, seed=4)
    torch.manual_seed(0)
    vae = build_vae()
    before = {name: p.detach().clone() for name, p in vae.named_parameters()}
    with torch.no_grad():
        latents = encode_clips(vae, clips, log=lambda _: None)
    psnr = measure_psnr(vae, clips)
    refine_decoder(
        vae, clips, held_out, latents, checkpoint=tmp_path / "s.pt", num_steps=20, log=lambda _: None
    )  # fmt: skip
    moved = {name.split(".")[0] for name, p in vae.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"decoder", "post_quant_conv"}
    assert measure_psnr(vae, clips) > psnr + 1.0


def test_a_written_folder_replaces_the_old_one_and_loads(tmp_path):
    from worldr1.models.wan import load_policy

    torch.manual_seed(0)
    folder = tmp_path / "wan"
    for _ in range(2):
        base = BaseModel(len(build_tokenizer()))
        write_pipeline(folder, base, build_vae())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["wan"]
    weight = load_policy(ModelConfig(path=folder), device="cpu").text_encoder.state_dict()["shared.weight"]
    torch.testing.assert_close(weight, base.text_encoder.shared.weight.data, rtol=1e-3, atol=1e-3)
