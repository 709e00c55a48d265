"""Steps and guidance that a checkpoint recommends are saved with it, and used by calls that name none."""

import json
import logging

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, DPMSolverMultistepScheduler, LCMScheduler
from helpers.loading import DIFFUSERS_CLASS, OUR_CLASS, REMOTE_CODE
from helpers.tiny_pipelines import SIZE, random_ids, seeded, tiny_unet

from semseg_diffusers import MaskGuidedDDPMPipeline, MaskGuidedImg2ImgPipeline, MaskGuidedInpaintPipeline
from semseg_diffusers.pipelines import mask_guided_mixin


PHOTO = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
KINDS = {
    MaskGuidedDDPMPipeline: {},
    MaskGuidedImg2ImgPipeline: {"image": PHOTO, "strength": 1.0},
    MaskGuidedInpaintPipeline: {"image": PHOTO, "edit_region": np.eye(SIZE, dtype=bool)},
}
TIMESTEPS = [999, 749, 499, 249]
FEW_STEPS = {"default_num_inference_steps": 4, "default_guidance_scale": 1.0, "trained_timesteps": TIMESTEPS}


def few_step_scheduler() -> LCMScheduler:
    return LCMScheduler(
        beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", original_inference_steps=len(TIMESTEPS)
    )


def made(kind=MaskGuidedDDPMPipeline, scheduler=None, **recommendation):
    pipe = kind(tiny_unet(), few_step_scheduler() if scheduler is None else scheduler, **recommendation)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sampled(pipe, **settings) -> torch.Tensor:
    settings = {**KINDS[type(pipe)], **settings}
    return pipe(mask=random_ids(), generator=seeded(0), output_type="pt", **settings).images


@pytest.fixture
def warnings_of(monkeypatch, caplog):
    """Return what a function warns of, in a process that has warned of nothing."""
    monkeypatch.setattr(mask_guided_mixin, "_warned", set())

    def run(function, *args, **settings) -> list[str]:
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            function(*args, **settings)
        return [record.getMessage() for record in caplog.records if record.name.startswith("semseg_diffusers")]

    return run


# --- what a call does without steps and guidance ---


@pytest.mark.parametrize("kind", KINDS)
def test_a_call_without_steps_and_guidance_does_what_the_checkpoint_recommends(kind, batches):
    pipe = made(kind, **FEW_STEPS)
    calls = batches(pipe.unet)
    images = sampled(pipe)
    assert calls == [1] * 4  # no guidance: one prediction a step
    assert (pipe.num_timesteps, pipe.guidance_scale) == (4, 1.0)
    assert torch.equal(images, sampled(pipe, num_inference_steps=4, guidance_scale=1.0))


@pytest.mark.parametrize("kind", KINDS)
def test_steps_and_guidance_of_a_call_win(kind):
    pipe = made(kind, **FEW_STEPS)
    sampled(pipe, num_inference_steps=2, guidance_scale=3.0)
    assert (pipe.num_timesteps, pipe.guidance_scale) == (2, 3.0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_that_recommends_nothing_takes_20_steps_and_guidance_2(kind):
    pipe = made(kind, DDIMScheduler())
    sampled(pipe)
    assert (pipe.num_timesteps, pipe.guidance_scale) == (20, 2.0)
    pipe = made(kind, DDIMScheduler(), default_guidance_scale=1.5)
    sampled(pipe)
    assert (pipe.num_timesteps, pipe.guidance_scale) == (20, 1.5)


@pytest.mark.parametrize(
    ("recommendation", "message"),
    [
        ({"default_num_inference_steps": 0}, "`default_num_inference_steps` is 0; expected a whole number"),
        ({"default_num_inference_steps": 4.0}, "`default_num_inference_steps` is 4.0; expected a whole number"),
        ({"default_guidance_scale": "2"}, "`default_guidance_scale` is '2'; expected a finite number"),
        ({"default_guidance_scale": float("nan")}, "`default_guidance_scale` is nan; expected a finite number"),
        ({"trained_timesteps": [999, -1]}, "`trained_timesteps` is -1; expected a whole number of at least 0"),
        ({"trained_timesteps": 4.5}, "`trained_timesteps` is 4.5; expected a whole number of at least 0"),
        ({"trained_timesteps": []}, "`trained_timesteps` is empty"),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_recommendation_that_cannot_be_is_refused(kind, recommendation, message):
    with pytest.raises(ValueError, match=message):
        made(kind, **recommendation)


# --- what is saved ---


@pytest.mark.parametrize("kind", KINDS)
def test_the_recommendation_is_saved_as_plain_json_and_carried_by_every_way_to_make_a_pipeline(kind, tmp_path):
    numbers = {
        "default_num_inference_steps": np.int64(4),
        "default_guidance_scale": torch.tensor(1.0),
        "trained_timesteps": few_step_scheduler_timesteps(),
    }
    pipe = made(kind, **numbers)
    pipe.save_pretrained(tmp_path / "saved")
    index = json.loads((tmp_path / "saved" / "model_index.json").read_text())
    assert {name: index[name] for name in FEW_STEPS} == FEW_STEPS
    loaded = [each.from_pretrained(tmp_path / "saved") for each in (*KINDS, DiffusionPipeline)]
    made_from = [each.from_pipe(loaded[0]) for each in KINDS]
    for other in (*loaded, *made_from):
        assert {name: other.config[name] for name in FEW_STEPS} == FEW_STEPS
        assert other.resolve_sampling() == (4, 1.0)
    made_from[-1].save_pretrained(tmp_path / "again")
    again = json.loads((tmp_path / "again" / "model_index.json").read_text())
    assert {name: again[name] for name in FEW_STEPS} == FEW_STEPS
    assert kind.from_pretrained(tmp_path / "saved", default_num_inference_steps=2).resolve_sampling() == (2, 1.0)
    assert kind.from_pipe(loaded[0], default_guidance_scale=3.0).resolve_sampling() == (4, 3.0)


def few_step_scheduler_timesteps() -> torch.Tensor:
    scheduler = few_step_scheduler()
    scheduler.set_timesteps(len(TIMESTEPS))
    return scheduler.timesteps


RESOLVED = """
pipe.set_progress_bar_config(disable=True)
ids = torch.arange(16 * 16).reshape(1, 16, 16) % 19
images = pipe(ids, generator=torch.Generator().manual_seed(0), output_type="pt").images
torch.save((images, pipe.num_timesteps, pipe.guidance_scale, pipe.config.trained_timesteps), sys.argv[2])
"""


@pytest.mark.parametrize("code", [OUR_CLASS, DIFFUSERS_CLASS, REMOTE_CODE], ids=["our", "diffusers", "saved code"])
def test_each_way_to_load_takes_the_recommendation_over(code, tmp_path, clean_process):
    pipe = made(**FEW_STEPS)
    pipe.save_pretrained(tmp_path / "saved")
    paths = (tmp_path / "saved", tmp_path / "images.pt", tmp_path / "again")
    clean_process(code + RESOLVED, *paths, without_package=code == REMOTE_CODE)
    images, *resolved = torch.load(tmp_path / "images.pt")
    assert resolved == [4, 1.0, TIMESTEPS]
    ids = torch.arange(SIZE * SIZE).reshape(1, SIZE, SIZE) % 19
    assert torch.allclose(images, pipe(ids, generator=seeded(0), output_type="pt").images, atol=1e-4)
    if code == REMOTE_CODE:
        for name in ("model_index.json", "pipeline.py"):
            assert (tmp_path / "again" / name).read_text() == (tmp_path / "saved" / name).read_text()


@pytest.mark.parametrize("kind", [*KINDS, DiffusionPipeline])
def test_a_folder_of_an_earlier_version_is_sampled_as_it_was(kind, tmp_path):
    made(scheduler=DDIMScheduler()).save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    kept = {name: value for name, value in index.items() if name not in FEW_STEPS}
    assert set(kept) == {"_class_name", "_diffusers_version", "scheduler", "unet"}
    (tmp_path / "model_index.json").write_text(json.dumps(kept))
    assert kind.from_pretrained(tmp_path).resolve_sampling() == (20, 2.0)


# --- few-step networks and their scheduler ---


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_the_saved_scheduler_samples_at_the_trained_timesteps_in_any_steps_it_can_take(kind, steps, warnings_of):
    pipe, seen = made(kind, **FEW_STEPS), []

    def look(_, step, timestep, tensors):  # noqa: ARG001  diffusers' signature
        seen.append(int(timestep))
        return tensors

    assert warnings_of(sampled, pipe, num_inference_steps=steps, callback_on_step_end=look) == []
    assert seen == {1: [999], 2: [999, 499], 3: [999, 749, 499], 4: TIMESTEPS}[steps]


@pytest.mark.parametrize(("strength", "steps"), [(0.25, 1), (0.5, 2), (0.75, 3), (1.0, 4)])
def test_strength_is_the_part_of_the_few_steps(strength, steps, batches):
    pipe = made(MaskGuidedImg2ImgPipeline, **FEW_STEPS)
    calls = batches(pipe.unet)
    assert sampled(pipe, strength=strength).isfinite().all()
    assert len(calls) == pipe.num_timesteps == steps


def test_a_strength_of_less_than_a_step_warns_that_images_stay(warnings_of):
    pipe = made(MaskGuidedImg2ImgPipeline, **FEW_STEPS)
    (message,) = warnings_of(sampled, pipe, strength=0.2)
    assert "`strength` 0.2 of 4 steps is less than one step" in message
    assert "at least 1/4" in message
    assert warnings_of(sampled, pipe, strength=0.0) == []


@pytest.mark.parametrize("kind", KINDS)
def test_more_steps_than_the_saved_scheduler_can_take_are_refused_with_how_many_it_can(kind, batches):
    pipe = made(kind, **FEW_STEPS)
    calls = batches(pipe.unet)
    with pytest.raises(ValueError, match=r"^LCMScheduler samples in at most 4 steps, .*; got 5\. Use 1 to 4 steps"):
        sampled(pipe, num_inference_steps=5)
    assert calls == []


@pytest.mark.parametrize("kind", KINDS)
def test_another_scheduler_samples_in_other_steps_and_warns_once_of_its_timesteps(kind, warnings_of):
    pipe = made(kind, **FEW_STEPS)
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    (message,) = warnings_of(sampled, pipe, num_inference_steps=20)
    assert message == (
        "This network was distilled for the timesteps 999, 749, 499, 249; DPMSolverMultistepScheduler in 20 steps "
        "visits others, and images may be worse: use the saved LCMScheduler with 1 to 4 steps."
    )
    assert warnings_of(sampled, pipe, num_inference_steps=20) == []
    assert len(warnings_of(sampled, pipe, num_inference_steps=10)) == 1
    again = MaskGuidedDDPMPipeline.from_pipe(pipe)
    again.set_progress_bar_config(disable=True)
    assert warnings_of(sampled, again, num_inference_steps=20) == []


def test_a_network_that_was_not_distilled_warns_of_no_timesteps(warnings_of):
    assert warnings_of(sampled, made(scheduler=DDIMScheduler()), num_inference_steps=7) == []
