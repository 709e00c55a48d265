"""Distillation of a model into one of few steps: its runs, its students, its losses and its discriminators."""

import dataclasses
import signal
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, LCMScheduler, UNet2DModel
from helpers.training_runs import (
    TINY,
    distill_here,
    finished,
    launch_two,
    log_lines,
    start,
    status,
    tiny_settings,
    train_here,
    wait_until,
    weights,
)
from PIL import Image
from safetensors.torch import load_file

from semseg_diffusers import MaskGuidedDDPMPipeline
from semseg_diffusers.backbones.image_backbone import ImageBackbone
from semseg_diffusers.distillation.discriminator import (
    Discriminator,
    FrozenFeatures,
    discriminator_loss,
    frozen,
    generator_loss,
)
from semseg_diffusers.distillation.distill import DistillationRun, Objective, build_inputs
from semseg_diffusers.distillation.settings import DistillationSettings
from semseg_diffusers.reports.run_page import write_run_page
from semseg_diffusers.toy.scenes import write_toy_dataset
from semseg_diffusers.training.inputs import load_inputs
from semseg_diffusers.training.objective import Window
from semseg_diffusers.training.settings import TrainingSettings
from semseg_diffusers.training.source_configs import control_defaults
from semseg_diffusers.utils.settings import SettingsParser


pytestmark = pytest.mark.usefixtures("nothing_stays_running")
SMALL = ("train_batch_size", "max_train_steps", "checkpointing_steps", "logging_steps", "preview_steps")
SMALL += ("lr_warmup_steps", "dataloader_num_workers", "device")
EVERYTHING = {"discriminator": "both", "diversity_weight": 0.5}
ONE_STEP = {"max_train_steps": 1, "checkpointing_steps": 1}
SDM = {"network": "sdm", "block_out_channels": (32, 32), "attention_levels": 1}
SDM |= {"stem_channels": 16, "norm_num_groups": 16}  # as by default: not this network's


def student_settings(teacher, toy, run, **changes) -> DistillationSettings:
    """Four steps of two images, with the smallest discriminator input."""
    small = {name: TINY[name] for name in SMALL} | {"learning_rate": 1e-3, "discriminator_scale": 1.0}
    if changes.get("adversarial_weight") == 0:
        del small["discriminator_scale"]
    return DistillationSettings(model=str(teacher), dataset=str(toy), output_dir=str(run), **small | changes)


@pytest.fixture(scope="module")
def teacher(toy, tmp_path_factory):
    return train_here(tiny_settings(toy, tmp_path_factory.mktemp("runs") / "teacher", dropout=0.0))


@pytest.fixture(scope="module")
def student(teacher, toy, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "student"
    return distill_here(student_settings(teacher, toy, run, **EVERYTHING, preview_steps=4))


# Runs


def test_a_student_is_an_ordinary_checkpoint_that_recommends_its_steps(student, teacher):
    pipe = MaskGuidedDDPMPipeline.from_pretrained(student)
    assert type(pipe.scheduler) is LCMScheduler
    assert "solver_order" not in pipe.scheduler.config  # of the teacher's sampler
    assert (pipe.config.default_num_inference_steps, pipe.config.default_guidance_scale) == (4, 1.0)
    assert list(pipe.config.trained_timesteps) == [999, 749, 499, 249]
    base = MaskGuidedDDPMPipeline.from_pretrained(teacher)
    assert type(pipe.unet) is type(base.unet)
    assert torch.allclose(pipe.scheduler.alphas_cumprod, base.scheduler.alphas_cumprod)
    mask = torch.zeros(16, 32, dtype=torch.long)
    images = pipe(mask, generator=torch.Generator().manual_seed(0), output_type="pt").images
    assert pipe.num_timesteps == 4
    again = pipe(
        mask, num_inference_steps=4, guidance_scale=1, generator=torch.Generator().manual_seed(0), output_type="pt"
    )
    assert torch.equal(images, again.images)
    visited: list[int] = []
    for steps in (1, 2, 3):
        pipe(mask, num_inference_steps=steps, callback_on_step_end=lambda _, __, t, ___: visited.append(int(t)) or {})
    assert visited == [999, 999, 499, 999, 749, 499]


def test_a_resumed_distillation_equals_the_straight_one_bit_for_bit(student, teacher, toy, tmp_path):
    settings = student_settings(teacher, toy, tmp_path / "run", **EVERYTHING, preview_steps=4)
    run = distill_here(settings)
    (run / "checkpoint-4").rename(run / "checkpoint-4.set-aside")
    resumed = distill_here(dataclasses.replace(settings, resume_from_checkpoint="latest"))
    for name in ("loss", "distillation", "reconstruction", "adversarial", "diversity", "discriminator"):
        assert [line[name] for line in log_lines(resumed)] == [line[name] for line in log_lines(student)]
    for name in ("model.safetensors", "model_1.safetensors", "ema.safetensors"):
        one, other = (load_file(run / "checkpoint-4" / name) for run in (resumed, student))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
    one, other = weights(resumed), weights(student)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_student_may_start_from_another(student, teacher, toy, tmp_path):
    changes = {**ONE_STEP, "learning_rate": 1e-12, "lr_warmup_steps": 0}
    settings = student_settings(teacher, toy, tmp_path / "run", init_from=str(student), **changes)
    one, other = weights(distill_here(settings)), weights(student)
    assert all(torch.allclose(one[name], other[name], atol=1e-6) for name in other)


@pytest.mark.slow
def test_two_processes_distill_as_one_with_the_same_batch(teacher, toy, tmp_path):
    changes = {**EVERYTHING, "preview_steps": 0}
    one = distill_here(student_settings(teacher, toy, tmp_path / "one", train_batch_size=4, **changes))
    script = tmp_path / "distill.py"
    script.write_text(
        "from semseg_diffusers.distillation.distill import run\n"
        "from semseg_diffusers.distillation.settings import DistillationSettings\n"
        "from semseg_diffusers.utils.distributed import process_main\n"
        "if __name__ == '__main__':\n    process_main(DistillationSettings, run, 'distill')\n"
    )
    settings = student_settings(teacher, toy, tmp_path / "two", train_batch_size=2, **changes)
    finished(launch_two(script, settings))
    for name in ("loss", "distillation", "adversarial", "discriminator"):
        expected = [line[name] for line in log_lines(one)]
        assert [line[name] for line in log_lines(tmp_path / "two")] == pytest.approx(expected, rel=1e-3)
    first, second = weights(one), weights(tmp_path / "two")
    assert all(torch.allclose(first[name], second[name], atol=1e-4) for name in first)


@pytest.mark.slow
def test_a_distillation_that_is_asked_to_stop_saves_and_goes_on_bit_for_bit(teacher, toy, tmp_path):
    settings = student_settings(
        teacher, toy, tmp_path / "run", max_train_steps=1000, checkpointing_steps=1000, lr_scheduler="constant"
    )
    process = start("-m", "semseg_diffusers.distillation", *settings.to_arguments())
    wait_until(lambda: len(log_lines(tmp_path / "run")) > 2, process)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=300)
    ended = status(tmp_path / "run")
    assert (ended["status"], ended["reason"]) == ("stopped", "SIGTERM")
    changes = {"max_train_steps": ended["step"] + 2, "lr_scheduler": "constant", "checkpointing_steps": 1000}
    distill_here(student_settings(teacher, toy, tmp_path / "run", resume_from_checkpoint="latest", **changes))
    distill_here(student_settings(teacher, toy, tmp_path / "straight", **changes))
    one, other = weights(tmp_path / "run"), weights(tmp_path / "straight")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_preview_has_a_column_for_each_number_of_steps_and_the_page_resumes_by_distill(student):
    with Image.open(student / "previews" / "step-0000004.png") as sheet:
        assert sheet.width > 4 * 32  # mask, 1, 2 and 4 steps, photo
    page = write_run_page(student).read_text()
    assert "semseg-diffusers distill --config" in page or "semseg-diffusers generate" in page
    card = (student / "README.md").read_text()
    assert "| distilled from | `teacher`, guidance 2 folded in; for 4 steps or fewer |" in card
    assert "projected and segmentation" in card


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("spade with attributes", {"mask_conditioning": "spade", "spade_channels": 8, "attributes": ("weather",)}),
        ("pixels", {"patch_size": 1, "prediction_type": "sample"}),
        ("zero terminal SNR", {"rescale_betas_zero_snr": True}),
        ("SDM", SDM),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_kind_of_model_has_a_student_of_its_class(toy, tmp_path, kind, changes):
    check_student(toy, tmp_path, tiny_settings(toy, tmp_path / "teacher", **{**ONE_STEP, **changes}))


def test_a_control_branch_has_a_student_whose_base_stays_as_it_is(toy, tmp_path):
    layers = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2, "layers_per_block": 1}
    base = UNet2DModel(sample_size=(16, 32), block_out_channels=(8, 16), norm_num_groups=4, **layers)
    DDPMPipeline(base, DDPMScheduler(prediction_type="v_prediction")).save_pretrained(tmp_path / "base")
    small = {name: TINY[name] for name in SMALL} | ONE_STEP
    settings = TrainingSettings(
        dataset=str(toy), output_dir=str(tmp_path / "teacher"), base_model=str(tmp_path / "base"),
        **small, **control_defaults(str(tmp_path / "base")),
    )  # fmt: skip
    student, teacher = check_student(toy, tmp_path, settings)
    ours, theirs = student.unet.state_dict(), teacher.unet.state_dict()
    changed = {name for name in ours if not torch.equal(ours[name], theirs[name])}
    assert changed
    assert all(name.startswith("control.") for name in changed)


def check_student(toy, tmp_path, settings):
    """Train a teacher and distill it: both pipelines, of which the student's network is of the same class."""
    settings_of_student = student_settings(
        train_here(settings), toy, tmp_path / "run", steps=2, lr_warmup_steps=0, **ONE_STEP
    )
    pipe = MaskGuidedDDPMPipeline.from_pretrained(distill_here(settings_of_student))
    base = MaskGuidedDDPMPipeline.from_pretrained(settings.output_dir)
    assert type(pipe.unet) is type(base.unet)
    assert {**pipe.unet.config} | {"_name_or_path": ""} == {**base.unet.config} | {"_name_or_path": ""}
    assert len(pipe(torch.zeros(16, 32, dtype=torch.long)).images) == 1
    return pipe, base


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--adversarial_weight", "0", "--discriminator", "both"], "--discriminator needs an --adversarial_weight"),
        (["--adversarial_weight", "0", "--diversity_weight", "1"], "--diversity_weight needs an --adversarial_weight"),
        (["--steps", "1", "--first_step_share", "0.5"], "--first_step_share is for students of several steps"),
        (
            ["--distillation_weight", "0", "--adversarial_weight", "0"],
            "are both 0: from noise, nothing",
        ),
    ],
)
def test_options_that_do_not_go_together_are_refused(words, message):
    with pytest.raises(ValueError, match=message):
        SettingsParser(DistillationSettings).parse_settings(
            ["--model", "m", "--dataset", "d", "--output_dir", "r", *words]
        )


def test_a_teacher_that_does_not_suit_is_refused_in_words(student, teacher, toy, tmp_path):
    with pytest.raises(ValueError, match="is distilled already. Give the model that it was made from"):
        distill_here(student_settings(student, toy, tmp_path / "run"))
    faded = train_here(
        tiny_settings(toy, tmp_path / "faded", max_train_steps=1, checkpointing_steps=1, label_diffusion=True)
    )
    with pytest.raises(ValueError, match="--label_diffusion: at the noisiest timestep it sees nothing of the mask"):
        distill_here(student_settings(faded, toy, tmp_path / "run"))
    of_noise = tiny_settings(
        toy, tmp_path / "noise", max_train_steps=1, checkpointing_steps=1, prediction_type="epsilon"
    )
    with pytest.raises(ValueError, match="predicts noise, .*: errors become 157 times as large"):
        distill_here(student_settings(train_here(of_noise), toy, tmp_path / "run"))
    other = write_toy_dataset(tmp_path / "other", num_train=3, num_val=1, size=(18, 32), seed=0)
    with pytest.raises(ValueError, match="is 18 x 32 pixels; --model .* needs multiples of 4"):
        distill_here(student_settings(teacher, other, tmp_path / "run"))


def test_a_distillation_is_resumed_with_its_teacher_only(student, toy, tmp_path):
    another = train_here(tiny_settings(toy, tmp_path / "another", max_train_steps=1, checkpointing_steps=1, seed=1))
    settings = student_settings(another, toy, student, **EVERYTHING, preview_steps=4)
    with pytest.raises(ValueError, match=r"belongs to a run on another model: the weights of --model differ"):
        distill_here(dataclasses.replace(settings, resume_from_checkpoint="latest"))


# Losses


@pytest.fixture
def objective(teacher, toy, tmp_path):
    settings = student_settings(teacher, toy, tmp_path / "run", diversity_weight=1.0, guidance_scale=1.0)
    accelerator = Accelerator(cpu=True)
    inputs = load_inputs(settings, accelerator, build_inputs)
    features = FrozenFeatures(ImageBackbone.from_name("efficientnet-lite0"), 1.0)
    run = SimpleNamespace(settings=settings, inputs=inputs, accelerator=accelerator, unet=inputs.unet)
    run.features, run.network = features, inputs.unet
    run.noise_scheduler = inputs.noise_scheduler
    run.samples_per_step = 2
    dataset = DistillationRun.training_dataset(run)
    items = [dataset[(position, position)] for position in range(4)]
    batch = {name: torch.stack([item[name] for item in items]) for name in items[0] if name != "stem"}
    yield Objective(run), batch
    AcceleratorState._reset_state(reset_partial_state=True)


def test_samples_have_the_students_timesteps_and_are_functions_of_seed_and_position(objective):
    objective, batch = objective
    assert set(batch["timestep"].tolist()) <= {999, 749, 499, 249}
    assert ((batch["teacher_timestep"] >= 50) & (batch["teacher_timestep"] < 900)).all()
    assert batch["window"].shape == (4, 4)


def test_the_teachers_sample_without_guidance_is_what_it_predicts_of_the_whole_mask(objective):
    objective, batch = objective
    partial = {**batch, "mask": torch.full_like(batch["mask"], 255), "whole_mask": batch["mask"]}
    found = objective.teachers_sample(batch["image"], partial)
    assert torch.equal(found, objective.teachers_sample(batch["image"], batch))
    scheduler, timestep = objective.noise_scheduler, batch["teacher_timestep"]
    noisy = scheduler.add_noise(batch["image"], batch["teacher_noise"], timestep)
    with torch.no_grad():
        velocity = objective.teacher(noisy, timestep, mask=batch["mask"]).sample
    alpha = scheduler.alphas_cumprod[timestep].view(-1, 1, 1, 1)
    assert torch.allclose(found, (alpha.sqrt() * noisy - (1 - alpha).sqrt() * velocity).clamp(-1, 1), atol=1e-5)


def test_images_that_are_alike_lack_all_diversity_and_the_teachers_lack_none(objective):
    objective, batch = objective
    batch["timestep"] = torch.full_like(batch["timestep"], 999)
    window = Window(batch["image"].shape, batch["window"], objective.settings.discriminator_window)
    fake = objective.features(objective.generate(batch), window)
    assert (objective.teachers_differences > 0).all()
    alike = objective.diversity_loss(fake, {**batch, "partner_noise": batch["noise"]})
    assert alike.item() == pytest.approx(1, abs=1e-3)
    other = objective.diversity_loss(fake, batch)
    assert 0 <= other.item() < 1
    other.backward()
    assert sum(weight.grad.abs().sum() for weight in objective.inputs.unet.parameters() if weight.grad is not None) > 0
    objective.teachers_differences = objective.teachers_differences * 0 + 1e-6
    assert objective.diversity_loss(fake, batch).item() == 0
    batch["timestep"] = torch.full_like(batch["timestep"], 499)  # from a photo: its structure is given
    assert objective.diversity_loss(fake, batch).item() == 0


def test_a_new_student_predicts_from_noise_what_the_teacher_does(objective):
    objective, batch = objective
    batch["timestep"] = torch.full_like(batch["timestep"], 999)
    with torch.no_grad():
        image = objective.generate(batch)
        velocity = objective.teacher(batch["noise"], batch["timestep"], mask=batch["mask"]).sample
    alpha = DDIMScheduler(beta_schedule="linear").alphas_cumprod[999]
    assert torch.allclose(image, alpha.sqrt() * batch["noise"] - (1 - alpha).sqrt() * velocity, atol=1e-5)


# Discriminators


@pytest.fixture(scope="module")
def features() -> FrozenFeatures:
    return FrozenFeatures(ImageBackbone.from_name("efficientnet-lite0"), 1.0)


@pytest.mark.parametrize("kind", ["projected", "segmentation", "both"])
def test_a_frozen_discriminator_gives_gradients_to_images_and_none_to_itself(features, kind):
    torch.manual_seed(0)
    images = torch.rand(2, 3, 32, 48, requires_grad=True)
    shares = torch.rand(2, 4, 32, 48).softmax(1)
    discriminator = Discriminator(kind, features.channels, 3, 4)
    window = Window(images.shape, torch.rand(2, 4), 0.7)
    with frozen(discriminator) as passed:
        loss = generator_loss(passed(features(images, window), window.cut(shares)), window.cut(shares))
    loss.backward()
    assert images.grad.abs().sum() > 0
    assert all(weight.grad is None for weight in discriminator.parameters())
    maps = [torch.cat([each, each]).detach() for each in features(images.detach(), window)]
    discriminator_loss(discriminator(maps, window.cut(shares).repeat(2, 1, 1, 1)), window.cut(shares)).backward()
    assert all(weight.grad is not None for weight in discriminator.parameters() if weight.requires_grad)


@pytest.mark.parametrize("kind", ["projected", "segmentation"])
def test_a_discriminator_learns_to_tell_noise_from_smooth_images(features, kind):
    torch.manual_seed(0)
    real, fake = (torch.linspace(-1, 1, 32).expand(4, 3, 32, 32) * torch.rand(4, 3, 1, 1), torch.randn(4, 3, 32, 32))
    shares = torch.zeros(4, 3, 32, 32)
    shares[:, 0], shares[:, 1, :, 16:], shares[:, 0, :, 16:] = 1, 1, 0
    discriminator = Discriminator(kind, features.channels, 2, 3)
    optimizer = torch.optim.Adam([w for w in discriminator.parameters() if w.requires_grad], lr=4e-3)
    window = Window(real.shape, torch.full((4, 4), 0.5), 1.0)
    maps = [torch.cat(pair).detach() for pair in zip(features(real, window), features(fake, window), strict=True)]
    losses = []
    for _ in range(30):
        loss = discriminator_loss(discriminator(maps, shares.repeat(2, 1, 1, 1)), shares)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        discriminator.update_norms()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


def test_an_unknown_mask_counts_for_nothing_in_the_segmentation_loss(features):
    torch.manual_seed(0)
    discriminator = Discriminator("segmentation", features.channels, 3, 4)
    images = torch.rand(1, 3, 32, 32, requires_grad=True)
    unknown = torch.zeros(1, 4, 32, 32)
    unknown[:, -1] = 1
    window = Window(images.shape, torch.full((1, 4), 0.5), 1.0)
    loss = generator_loss(discriminator(features(images, window), unknown), unknown)
    assert loss.item() == 0


def test_a_window_cuts_images_and_masks_alike_and_flips_half_of_them():
    torch.manual_seed(0)
    mask = (torch.rand(8, 1, 8, 8) > 0.5).float().repeat_interleave(8, 2).repeat_interleave(8, 3)
    window = Window(mask.shape, torch.rand(8, 4), 0.5)
    assert torch.equal(window.cut(mask), window.cut(mask.repeat(1, 3, 1, 1))[:, :1])
    whole = Window((2, 1, 64, 64), torch.tensor([[0.0, 0.5, 0.5, 0.2], [0.0, 0.5, 0.5, 0.8]]), 1.0)
    flipped, same = whole.cut(mask[:2])
    assert torch.allclose(flipped, mask[0].flip(-1), atol=1e-4)
    assert torch.allclose(same, mask[1], atol=1e-4)
