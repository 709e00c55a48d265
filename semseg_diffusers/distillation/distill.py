"""Distillation of a mask-guided diffusion model: teacher -> student -> steps -> pipeline; the command distill.

The student starts as a copy of the teacher. At each of its timesteps it predicts the image at once; the prediction is
noised, and pulled to what the guided teacher makes of it (adversarial diffusion distillation, Sauer et al. 2023,
section 3.3), which gives structure, while a discriminator that knows the mask gives what the teacher's mean lacks. It
samples by predicting, noising to the next timestep, and predicting again, as diffusers' `LCMScheduler` does.
"""

import copy
import dataclasses
import functools
import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, LCMScheduler
from PIL import Image

from semseg_diffusers.backbones.image_backbone import ImageBackbone
from semseg_diffusers.data.dataset import attribute_values, read_record
from semseg_diffusers.data.label_mapping import some_names
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.distillation.discriminator import (
    Discriminator,
    FrozenFeatures,
    discriminator_loss,
    frozen,
    generator_loss,
)
from semseg_diffusers.distillation.settings import DistillationSettings
from semseg_diffusers.hub.folders import weights_hash
from semseg_diffusers.hub.push import load_pipeline
from semseg_diffusers.models.unet_mask_guided import mask_to_one_hot
from semseg_diffusers.pipelines.guidance import Conditions
from semseg_diffusers.pipelines.latents import decode_latents
from semseg_diffusers.pipelines.mask_guided_mixin import GUIDANCE_SCALE, MaskGuidedMixin
from semseg_diffusers.pipelines.text_inputs import Texts
from semseg_diffusers.pipelines.upscaling import image_to_sample, sample_to_image
from semseg_diffusers.training import hardware
from semseg_diffusers.training.dataset import PARTNER, TEACHER, WINDOW, TrainingDataset, make_generator
from semseg_diffusers.training.inputs import (
    Data,
    Inputs,
    class_balance,
    count_every_mask,
    load_inputs,
    read_captions,
    training_size,
)
from semseg_diffusers.training.latents import Latents
from semseg_diffusers.training.loop import run_and_push
from semseg_diffusers.training.low_res import LowRes
from semseg_diffusers.training.networks import build_pipeline, check_resolution
from semseg_diffusers.training.objective import CONDITIONS, Window, predicted_sample
from semseg_diffusers.training.previews import parse_trackers, preview_pairs, preview_sheet, sample_images
from semseg_diffusers.training.run import Run
from semseg_diffusers.training.settings import CAPTION_OPTIONS


TEACHER_NOISE = 0.05, 0.9  # shares of the schedule between which samples are noised for the teacher
REFERENCE_MASKS = 16  # of which the teacher samples two images each, for their difference
PARTS = 4  # of a side, whose means are compared for diversity
NOISE_ALONE = 0.1  # share of the image in a sample below which the next image is as free as one from noise
LEAST_SIGNAL = 0.05  # share of the image in the noisiest sample, of networks that predict the noise


@dataclass
class DistillationInputs(Inputs):
    """What a distillation reads before its first step; `unet` is the student."""

    teacher: Any = None
    teacher_pipeline: Any = None
    guidance_scale: float = GUIDANCE_SCALE
    sampler: Any = None  # the student's scheduler

    @functools.cached_property
    def timesteps(self) -> list[int]:
        """Return the student's timesteps, the noisiest first."""
        scheduler = copy.deepcopy(self.sampler)
        scheduler.set_timesteps(scheduler.config.original_inference_steps)
        return scheduler.timesteps.tolist()

    @functools.cached_property
    def fingerprint(self) -> dict[str, Any]:
        """Return what a checkpoint was trained on and must find again on resume."""
        return {**super().fingerprint, "teacher": weights_hash(self.teacher.state_dict())}


class DistillationDataset(TrainingDataset):
    """Samples whose timesteps are the student's, with all else that is random about them.

    Item: that of `TrainingDataset`; `teacher_noise` (3, H, W) and `teacher_timestep`, of what the teacher sees;
    `window` (4,) in [0, 1): size, place and flip of the window that the discriminator sees; with a
    `--diversity_weight`, `partner_noise` (3, H, W), of another image of the mask.
    """

    keeps_whole_masks = True

    def __init__(self, *args: Any, timesteps: list[int], num_train_timesteps: int):
        super().__init__(*args)
        self.timesteps = torch.tensor(timesteps)
        self.first_noisy, self.last_noisy = (int(share * num_train_timesteps) for share in TEACHER_NOISE)

    def sample_timestep(self, generator: torch.Generator) -> torch.Tensor:
        """Sample a timestep of the student, the first one by its share."""
        first, other = torch.rand(2, generator=generator).tolist()
        if first < self.settings.first_step_share or len(self.timesteps) == 1:
            return self.timesteps[0]
        return self.timesteps[1 + int(other * (len(self.timesteps) - 1))]

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        sample, (position, _) = super().__getitem__(key), key
        generator = make_generator(self.settings.seed, TEACHER, position)
        sample["teacher_timestep"] = torch.randint(self.first_noisy, self.last_noisy, (), generator=generator)
        sample["teacher_noise"] = torch.randn(sample["noise"].shape, generator=generator)
        sample["window"] = torch.rand(4, generator=make_generator(self.settings.seed, WINDOW, position))
        if self.settings.diversity_weight:
            generator = make_generator(self.settings.seed, PARTNER, position)
            sample["partner_noise"] = torch.randn(sample["noise"].shape, generator=generator)
        return sample


def build_inputs(settings: DistillationSettings, data: Data) -> DistillationInputs:
    """Load the teacher, and refuse one that the data does not suit."""
    pairs, validation, reason = data
    pipeline: Any = load_pipeline(settings.model, revision=settings.revision, upscaler=None)
    teacher, config = pipeline.unet.requires_grad_(False).eval(), pipeline.unet.config
    where = f"--model {settings.model}"
    known = LabelSet.from_config(config)
    if known.names != pairs.labels.names:
        raise ValueError(
            f"{where} was trained on {known.num_classes} classes ({some_names(known)}), {pairs.name} has "
            f"{pairs.labels.num_classes} ({some_names(pairs.labels)}). Prepare the data with the model's classes."
        )
    if getattr(config, "label_diffusion", None):
        raise ValueError(
            f"{where} was trained with --label_diffusion: at the noisiest timestep it sees nothing of the mask, so it "
            "cannot follow one in few steps. Give a model that was trained without."
        )
    if pipeline.config.trained_timesteps:
        raise ValueError(f"{where} is distilled already. Give the model that it was made from.")
    is_upscaler = getattr(config, "upscale_factor", None) is not None
    if not is_upscaler and (given := settings.given(("low_res_from", "low_res_share", "low_res_blur"))):
        raise ValueError(f"{given[0]} is for upscalers, and {where} generates images from noise. Leave it out.")
    settings.check_low_res_share()
    if not is_upscaler and settings.steps == 1 and (given := settings.given(["reconstruction_weight"])):
        raise ValueError(f"{given[0]} is for students of several steps: with --steps 1, all start from noise.")
    height, width = training_size(settings, data)
    check_resolution(teacher, (height, width), pairs.name, where)
    latents = None
    if pipeline.vae is not None:
        latents = Latents(pipeline.vae.requires_grad_(False).eval(), pairs, settings)
        latents.use({name: config.get(name) for name in ("latents_mean", "latents_std")})
    elif pipeline.vae_scale_factor > 1:
        raise ValueError(
            f"{where} generates latents, but has no autoencoder. Give the folder that its training saved."
        )
    captions: tuple[Any, Any] = (None, None)
    text_components: dict[str, Any] = {}
    if getattr(config, "text_embed_dim", 0):
        if pipeline.text_encoder is None:
            raise ValueError(
                f"{where} reads texts, but its text encoder is missing. Give the folder that its training saved, and "
                "a connection if that names an encoder on the Hub."
            )
        captions = read_captions(settings, data)
        text_components = {
            "text_encoder": pipeline.text_encoder.requires_grad_(False).eval(),
            "tokenizer": pipeline.tokenizer,
            "text_encoder_source": pipeline.config.get("text_encoder_source"),
        }
    elif given := settings.given(CAPTION_OPTIONS):
        raise ValueError(f"{given[0]} is for models that read texts, and {where} does not. Leave it out.")
    student = type(teacher).from_config(teacher.config)
    student.load_state_dict(teacher.state_dict())
    sides = (height, width) if latents is None else latents.size(height, width)[1:]
    student.register_to_config(sample_size=sides[0] if height == width else sides)
    attributes = {name: list(values) for name, values in (getattr(config, "attributes", None) or {}).items()}
    attribute_values(pairs, attributes)  # that the data has these columns
    if not hasattr(pipeline.trained_scheduler, "betas"):
        raise ValueError(
            f"{where} was saved with {type(pipeline.trained_scheduler).__name__}, which has noise levels of its own. "
            "Give a model that was trained with betas, such as those of `train`."
        )
    noise_scheduler = DDPMScheduler(
        trained_betas=pipeline.trained_scheduler.betas.tolist(),
        num_train_timesteps=pipeline.trained_scheduler.config.num_train_timesteps,
        prediction_type=pipeline.trained_scheduler.config.prediction_type,
    )
    # only what `LCMScheduler` knows of the settings of the saved sampler, so that it loads without warnings
    known_settings = inspect.signature(LCMScheduler.__init__).parameters
    saved = {name: value for name, value in pipeline.trained_scheduler.config.items() if name in known_settings}
    # differences to an enlarged image, and latents, have no bounds
    clip_sample = getattr(config, "residual_scale", None) is None and latents is None
    sampler = LCMScheduler(**saved | {"original_inference_steps": settings.steps, "clip_sample": clip_sample})
    signal = float(noise_scheduler.alphas_cumprod[-1]) ** 0.5
    if noise_scheduler.config.prediction_type == "epsilon" and signal < LEAST_SIGNAL:
        raise ValueError(
            f"{where} predicts noise, which hardly determines the image where a student starts: errors become "
            f"{1 / signal:.0f} times as large. Give a model that was trained with --prediction_type v_prediction or "
            "sample."
        )
    counts = count_every_mask(settings, pairs) if settings.class_balanced_sampling else None
    return DistillationInputs(
        pairs, validation, reason, read_record(settings.dataset).get("format"), attributes, counts,
        None if counts is None else class_balance(settings, counts), None, None, student, noise_scheduler,
        *captions, text_components, latents,
        teacher=teacher,
        teacher_pipeline=pipeline,
        guidance_scale=pipeline.resolve_sampling(guidance_scale=settings.guidance_scale)[1],
        sampler=sampler,
    )  # fmt: skip


class DistillationRun(Run):
    """A run that trains a student, and a discriminator beside it."""

    command = "distill"
    inputs: DistillationInputs

    def __init__(self, *args: Any, features: FrozenFeatures | None):
        super().__init__(*args)
        self.features, self.discriminator = features, None
        if features is not None:
            num_classes, settings = self.inputs.pairs.labels.num_classes, self.settings
            num_conditions = num_classes + 1 + sum(map(len, self.inputs.attributes.values()))
            torch.manual_seed(settings.seed)
            self.discriminator = Discriminator(settings.discriminator, features.channels, num_classes, num_conditions)

    def networks(self) -> list[tuple[torch.nn.Module, float]]:
        """Return student and discriminator with their learning rates."""
        networks: list[tuple[torch.nn.Module, float]] = [(self.inputs.unet, self.settings.learning_rate)]
        if self.discriminator is not None:
            networks.append((self.discriminator, self.settings.discriminator_learning_rate))
        return networks

    def training_dataset(self) -> DistillationDataset:
        """Return pairs with noise and a timestep of the student."""
        inputs, settings = self.inputs, self.settings
        return DistillationDataset(
            inputs.pairs, settings, self.samples_per_step, inputs.attributes, None,
            LowRes.of(inputs.unet, settings, inputs.pairs), inputs.captions, inputs.latents,
            timesteps=inputs.timesteps, num_train_timesteps=self.noise_scheduler.config.num_train_timesteps,
        )  # fmt: skip

    def sample_preview(self) -> Image.Image:
        """Return samples of some masks in one step, two, four and so on, from the same noise."""
        settings, pairs = self.settings, preview_pairs(self.settings, self.inputs.preview_pairs, self.network)
        pipeline, columns = self._pipeline(self.network), []
        counts = [count for count in (1, 2, 4, 8, 16) if count < settings.steps] + [settings.steps]
        for count in counts:
            images = sample_images(
                pipeline, self.inputs.preview_pairs, pairs, 1, settings.seed, self.ema,
                captions=self.inputs.preview_captions, num_inference_steps=count,
            )  # fmt: skip
            columns.append(images)
        samples = [[image for (image,) in row] for row in zip(*columns, strict=True)]
        headers = ["1 step", *(f"{count} steps" for count in counts[1:])]
        return preview_sheet(self.inputs.pairs.labels, pairs, samples, headers)

    def pipeline(self) -> MaskGuidedMixin:
        """Return the pipeline that is saved at the end."""
        return self._pipeline(self.network.float().eval())

    def card_facts(self) -> dict[str, Any]:
        """Return the teacher's guidance."""
        return {"guidance_scale": self.inputs.guidance_scale}

    def _pipeline(self, unet: torch.nn.Module) -> MaskGuidedMixin:
        return build_pipeline(
            unet, self.inputs.sampler, default_num_inference_steps=self.settings.steps, default_guidance_scale=1.0,
            trained_timesteps=self.inputs.timesteps, **self.inputs.components,
        )  # fmt: skip


class Objective:
    """The losses of a student and its discriminator on a batch of `DistillationDataset`."""

    def __init__(self, run: DistillationRun):
        self.run, self.settings, self.inputs = run, run.settings, run.inputs
        self.noise_scheduler: DDPMScheduler = run.noise_scheduler
        self.teacher = self.inputs.teacher.to(run.accelerator.device)
        self.features: Any = run.features
        self.residual_scale = getattr(self.teacher.config, "residual_scale", None)
        self.latents = self.inputs.latents
        if self.settings.diversity_weight:
            self.teachers_differences = self._teachers_differences()

    def generate(self, batch: dict[str, Any]) -> torch.Tensor:
        """Return the clean sample (B, 3, H, W) that the student predicts: from noise, or from a noised photo."""
        timestep = batch["timestep"]
        noisy = self.noise_scheduler.add_noise(self.photos_sample(batch), batch["noise"], timestep)
        from_noise = (timestep == self.inputs.timesteps[0])[:, None, None, None]
        noisy = torch.where(from_noise, batch["noise"], noisy)
        conditions = {name: batch[name] for name in CONDITIONS if name in batch}
        prediction = self.run.unet(noisy, timestep, mask=batch["mask"], **conditions).sample
        return predicted_sample(self.noise_scheduler, noisy, prediction.float(), timestep)

    def photos_sample(self, batch: dict[str, Any]) -> torch.Tensor:
        """Return the samples (B, 3, H, W) that the photos of a batch are, or their latents (B, C, h, w)."""
        if self.latents is not None:
            return batch["latents"]
        return image_to_sample(batch["image"], batch.get("low_res"), self.residual_scale)

    def image(self, sample: torch.Tensor, batch: dict[str, Any]) -> torch.Tensor:
        """Return the images (B, 3, H, W) that samples are."""
        if self.latents is not None:
            return decode_latents(self.latents.vae, sample, self.latents.statistics)
        return sample_to_image(sample, batch.get("low_res"), self.residual_scale)

    @torch.no_grad()
    def teachers_sample(self, sample: torch.Tensor, batch: dict[str, Any]) -> torch.Tensor:
        """Noise a sample (B, 3, H, W) and return the guided teacher's prediction of it, which sees whole masks."""
        timestep = batch["teacher_timestep"]
        noisy = self.noise_scheduler.add_noise(sample, batch["teacher_noise"], timestep)
        given = {name: batch[name] for name in CONDITIONS if name in batch}
        if "text_embeds" in given:
            embeds, regions = given.pop("text_embeds"), given.pop("region_embeds")
            given["texts"] = Texts(embeds, torch.zeros_like(embeds), regions, [])
        conditions = Conditions(self.teacher, batch.get("whole_mask", batch["mask"]), 1, **given)
        weights = conditions.weights(self.inputs.guidance_scale, None)
        prediction = conditions.predict(noisy, timestep, weights)[:, : sample.shape[1]]
        predicted = predicted_sample(self.noise_scheduler, noisy, prediction.float(), timestep)
        return predicted.clamp(-1, 1) if self.residual_scale is None and self.latents is None else predicted

    def differences(self, fake: list[torch.Tensor], partner: list[torch.Tensor]) -> torch.Tensor:
        """Return how far two images of a mask are apart at each scale of the features, (S, B).

        Means of `PARTS` x `PARTS` parts of the image are compared: grain, which differs anyway, is no diversity.
        """
        pairs = [[F.adaptive_avg_pool2d(maps, PARTS) for maps in both] for both in zip(fake, partner, strict=True)]
        return torch.stack([1 - F.cosine_similarity(a, b, dim=1).mean((1, 2)) for a, b in pairs])

    def diversity_loss(self, fake: list[torch.Tensor], batch: dict[str, Any]) -> torch.Tensor:
        """Return what images from noise lack of the teacher's difference between images, as a share of it."""
        signal = self.noise_scheduler.alphas_cumprod.to(batch["noise"])[batch["timestep"]].sqrt()
        (rows,) = (signal < NOISE_ALONE).nonzero(as_tuple=True)
        if not len(rows):
            return fake[0].new_zeros(())
        others = {name: values[rows] for name, values in batch.items() if isinstance(values, torch.Tensor)}
        with torch.no_grad():
            partner = self.image(self.generate(others | {"noise": others["partner_noise"]}), others)
            window = Window(partner.shape, others["window"], self.settings.discriminator_window)
            features = self.features(partner, window)
        found = self.differences([each[rows] for each in fake], features)
        lacking = (1 - found / self.teachers_differences[:, None]).clamp(min=0).mean(0)  # (rows,)
        return lacking.sum() / len(signal)  # as other losses, over all samples, so that processes share it out

    @torch.no_grad()
    def _teachers_differences(self) -> torch.Tensor:
        """Return the mean difference of two images of a mask that the teacher samples, at each scale (S,)."""
        settings, inputs, device = self.settings, self.inputs, self.run.accelerator.device
        settings = dataclasses.replace(settings, preview_masks=REFERENCE_MASKS)
        pairs = preview_pairs(settings, inputs.pairs, inputs.teacher)
        samples = sample_images(
            inputs.teacher_pipeline.to(device), inputs.pairs, pairs, 2, settings.seed, None,
            guidance_scale=inputs.guidance_scale,
        )  # fmt: skip
        windows = torch.rand(len(pairs), 4, generator=make_generator(settings.seed, WINDOW, 0)).to(device)
        maps = []
        for images in zip(*samples, strict=True):  # the first of each mask, then the second
            pixels = torch.stack([torch.from_numpy(np.array(image)) for image in images]).to(device)
            tensor = pixels.permute(0, 3, 1, 2).contiguous() / 127.5 - 1  # (M, 3, H, W)
            maps.append(self.features(tensor, Window(tensor.shape, windows, settings.discriminator_window)))
        return self.differences(*maps).mean(1)

    def conditions(self, batch: dict[str, Any], window: Window) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the shares of classes and unknown (B, N + 1, H, W), and these with the attributes (B, K, H, W)."""
        labels = self.inputs.pairs.labels
        one_hot = mask_to_one_hot(batch["mask"], labels.num_classes, torch.float32)
        shares = window.cut(torch.cat([one_hot, 1 - one_hot.sum(1, keepdim=True)], dim=1))
        parts = [shares]
        for column, values in enumerate(self.inputs.attributes.values()):
            numbers = batch["attributes"][:, column, None]  # (B, 1), -1 where unknown
            known = (numbers == torch.arange(len(values), device=numbers.device)).float()
            parts.append(known[:, :, None, None].expand(-1, -1, *shares.shape[-2:]))
        return shares, torch.cat(parts, dim=1)

    def step(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Train student and discriminator on a batch, both by the weights of before; returns the losses."""
        run, settings, accelerator = self.run, self.settings, self.run.accelerator
        if self.latents is not None and "latents" not in batch:
            batch["latents"] = self.latents.encode(batch)
        with accelerator.autocast():
            generated = self.generate(batch)
            loss, found = generated.new_zeros(()), None
            values: dict[str, torch.Tensor] = {}
            if settings.distillation_weight:
                values["distillation"] = (generated - self.teachers_sample(generated.detach(), batch)).square().mean()
                loss = loss + settings.distillation_weight * values["distillation"]
            if settings.reconstruction_weight and (settings.steps > 1 or "low_res" in batch):
                errors = (generated - self.photos_sample(batch)).square().mean((1, 2, 3))  # (B,)
                if "low_res" not in batch:  # of an image to enlarge, noise alone shows the photo too
                    errors = errors * (batch["timestep"] != self.inputs.timesteps[0])
                values["reconstruction"] = errors.mean()
                loss = loss + settings.reconstruction_weight * values["reconstruction"]
            if self.features is not None:
                images = self.image(generated, batch)
                window = Window(images.shape, batch["window"], settings.discriminator_window)
                shares, conditions = self.conditions(batch, window)
                fake = self.features(images, window)
                with torch.no_grad():  # decoded latents: not to blame the student for the autoencoder
                    photos = batch["image"] if self.latents is None else self.image(batch["latents"], batch)
                    real = self.features(photos, window)
                with frozen(accelerator.unwrap_model(run.models[1])) as discriminator:
                    values["adversarial"] = generator_loss(discriminator(fake, conditions), shares)
                loss = loss + settings.adversarial_weight * values["adversarial"]
                if settings.diversity_weight:
                    values["diversity"] = self.diversity_loss(fake, batch)
                    loss = loss + settings.diversity_weight * values["diversity"]
                both = [torch.cat([a, b.detach()]) for a, b in zip(real, fake, strict=True)]
                found = run.models[1](both, conditions.repeat(2, 1, 1, 1))
                values["discriminator"] = discriminator_loss(found, shares)
        accelerator.backward(loss)
        if found is not None:
            accelerator.backward(values["discriminator"])
            run.update(1)
            if accelerator.sync_gradients:
                accelerator.unwrap_model(run.models[1]).update_norms()
        run.update()
        return {"loss": loss, **values}


def distill(settings: DistillationSettings) -> Path:
    """Distill a model into one of few steps, and save its pipeline.

    Args:
        settings: of the run.

    Returns:
        the run folder, as of `train`.

    Raises:
        ValueError: settings, data and teacher do not go together; a checkpoint of another run; a folder in use.
        FileNotFoundError: no such dataset, model or checkpoint.
        TrainingDivergedError: the loss is not finite, or exploded.
        TrainingStoppedError: a termination signal arrived; a checkpoint is saved.
        OSError: a checkpoint could not be written; the one before is complete.
    """
    trackers = parse_trackers(settings.report_to)
    accelerator = hardware.build_accelerator(settings, Path(settings.output_dir), trackers)
    features = None
    if settings.adversarial_weight:
        backbone = ImageBackbone.from_name(settings.discriminator_backbone, device=accelerator.device)
        backbone.drop_classifier()
        features = FrozenFeatures(backbone, settings.discriminator_scale)
    inputs = load_inputs(settings, accelerator, build_inputs)
    with DistillationRun(settings, accelerator, inputs, trackers, features=features) as run:
        run.optimize(Objective(run).step)
    return run.folder


def run(settings: DistillationSettings) -> int:
    """Distill, and upload the run if the settings say so; returns the exit code of this process."""
    return run_and_push(settings, distill)
