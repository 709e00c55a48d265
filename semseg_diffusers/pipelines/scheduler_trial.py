"""A scheduler is tried before it samples: with the exact prediction for images whose distribution is known.

A half of the pixels is known, and a half normally distributed with the contrast of photos, so that the best prediction
at each noise level is a formula (Karras et al. 2022, appendix B). What a scheduler makes of it is its own doing: the
noise at each step has to be that of the step's timestep, at the levels that the network was trained with, small errors
of the prediction have to stay small, and the result has to have the known pixels and the contrast. This file is saved
beside the weights and runs without the package: it imports the standard library, torch and
diffusers only.
"""

import copy
import hashlib
import inspect
import math
import sys
from collections.abc import Mapping
from typing import Any

import torch
from diffusers.utils import logging


logger = logging.get_logger(__name__)
# Their steps advance by as many timesteps as spacing "trailing" has; with "linspace" some noise stays in the image.
FIXED_STRIDE = ("DDIMScheduler", "DDIMParallelScheduler")
# With fewer steps, schedulers that are right leave noise in the image too, so they are judged at this number of steps.
MIN_STEPS = 10
MIN_TIMESTEPS = 50  # of the training; betas of fewer are so large that few statements hold of all schedulers
# Of images in [-1, 1]; benchmarks/studies/schedulers.py shows what networks sample on either side of these.
MAX_LEVEL_ERROR = 0.05  # between the noise levels of two schedulers
MAX_NOISE_ERROR = 0.12  # of the noise of known pixels
MAX_NOISE_EXCESS = 0.25  # of noise and contrast of the other pixels
MAX_AMPLIFICATION = 0.28  # of noise, by which a prediction that is off by SMALL_ERROR at high noise moves the pixels
MAX_LAST_NOISE = 0.02  # above the expected at the last step, which the network does not remove
MAX_FINAL_ERROR = 0.05  # of known pixels, root mean square
CONTRAST_RANGE = 0.1, 1.5  # of the other pixels, relative to the true one
CONTRAST, SMALL_ERROR, HIGH_NOISE = 0.5, 0.05, 0.98
_reasons: dict[tuple, str | None] = {}  # of the trials in this process: why a scheduler failed, None if it did not


def check_scheduler(
    scheduler: Any,
    num_inference_steps: int,
    trained: Any = None,
    strength: float | None = None,
    keeps_known: bool = False,
    schedule: Mapping[str, Any] | None = None,
) -> None:
    """Raise a `ValueError` where a scheduler does not sample what a network was trained to predict.

    Schedulers whose steps are not those of diffusers, or whose noise levels are not known, are left to their authors.

    Args:
        scheduler: The scheduler; it is copied, and stays as it is.
        num_inference_steps (`int`): Steps to try.
        trained (*optional*): The scheduler of the saved pipeline, with the noise levels and the prediction type of the
            training; `scheduler` itself if None.
        strength (`float`, *optional*): Start from the noisy image, at this fraction of the schedule.
        keeps_known (`bool`, defaults to False): Replace a half of the image by the known one at each step.
        schedule (`dict`, *optional*): Other arguments of `set_timesteps` than the number of steps.
    """
    max_steps, limit = _max_steps(scheduler)
    if num_inference_steps > max_steps:
        raise ValueError(
            f"{type(scheduler).__name__} samples in at most {max_steps} steps, its `{limit}`; got "
            f"{num_inference_steps}. Use 1 to {max_steps} steps, or another scheduler."
        )
    schedule = schedule or {"num_inference_steps": num_inference_steps}
    is_usual = "num_inference_steps" in schedule
    trained = trained if _kept_signal(trained) is not None else scheduler
    kept_signal = _kept_signal(trained)
    if kept_signal is None or len(kept_signal) < MIN_TIMESTEPS or not _is_of_diffusers(scheduler):
        return
    own, prediction_type = _kept_signal(scheduler), getattr(trained.config, "prediction_type", "epsilon")
    levels = [None if each is None else hashlib.sha256(each.numpy().tobytes()).digest() for each in (own, kept_signal)]
    config = repr(sorted((name, value) for name, value in scheduler.config.items() if name != "trained_betas"))
    # the saved scheduler is its author's choice: more is forgiven, and few steps are not judged
    is_saved = type(scheduler) is type(trained) and dict(scheduler.config) == dict(trained.config)
    key = type(scheduler), config, *levels, prediction_type, repr(schedule), strength, keeps_known, is_saved
    if key not in _reasons:
        reason = _mismatch(scheduler, own, kept_signal, prediction_type)
        usual_steps = math.ceil(MIN_STEPS / (strength or 1))
        usual_steps = min(max(num_inference_steps, usual_steps), len(kept_signal), max_steps)
        schedules = {num_inference_steps: schedule}
        if not is_saved and is_usual:
            schedules[usual_steps] = {"num_inference_steps": usual_steps}
        for steps, tried in schedules.items():
            trial = _Trial(scheduler, kept_signal, prediction_type, strength, keeps_known, is_saved or not is_usual)
            judge = steps == usual_steps and steps >= MIN_STEPS and trial.variance_type != "learned"
            reason = reason or trial.run(steps, tried, judge)
        _reasons[key] = reason
    if _reasons[key] is not None:
        raise ValueError(
            f"{describe(scheduler, trained)} cannot sample this model in {num_inference_steps} steps: {_reasons[key]} "
            "Use other options of it, another number of steps, or another scheduler such as DDIMScheduler, built from "
            "the config of the saved one."
        )


def mend_scheduler(scheduler: Any) -> None:
    """Let a scheduler with the settings of another sample without the noise that they would leave in images.

    One whose attribute `keeps_spacing` is True stays as it is.
    """
    name = type(scheduler).__name__
    is_noisy = name in FIXED_STRIDE and scheduler.config.get("timestep_spacing") == "linspace"
    if not is_noisy or getattr(scheduler, "keeps_spacing", False):
        return
    scheduler.register_to_config(timestep_spacing="trailing")
    logger.info(
        f"{name} samples with timestep_spacing='trailing': its steps are of one size, so that 'linspace' would leave "
        "noise in the images. Set its attribute keeps_spacing to True to sample so all the same."
    )


def describe(scheduler: Any, trained: Any = None) -> str:
    """Return the name of a scheduler with the options that differ from the trained one's, or from its defaults."""
    defaults = {name: each.default for name, each in inspect.signature(type(scheduler).__init__).parameters.items()}
    base = defaults if trained is None or trained is scheduler else {**defaults, **trained.config}
    options = {name: value for name, value in scheduler.config.items() if name in defaults and value != base[name]}
    options.pop("trained_betas", None)
    text = ", ".join(f"{name}={value!r}" for name, value in options.items())
    return type(scheduler).__name__ + (f" ({text})" if text else "")


def _mismatch(scheduler: Any, own: torch.Tensor | None, kept_signal: torch.Tensor, prediction_type: str) -> str | None:
    """Return why a scheduler does not suit the training by its settings alone, or None."""
    found = getattr(scheduler.config, "prediction_type", prediction_type)
    if found != prediction_type:
        return f"its prediction_type is {found!r}, that of the training {prediction_type!r}."
    if own is None:
        return None
    if len(own) != len(kept_signal):
        return f"it has noise levels of {len(own)} timesteps, the training {len(kept_signal)}."
    error, t = ((1 - own).sqrt() - (1 - kept_signal).sqrt()).abs().max(dim=0)
    if error <= MAX_LEVEL_ERROR:
        return None
    ours, theirs = (float((1 - each[t]).sqrt()) for each in (own, kept_signal))
    return (
        f"its noise at timestep {int(t)} is {ours:.3f}, that of the training {theirs:.3f}. (`from_config` of diffusers"
        " drops the values listed in `_use_default_values` of a config: schedulers with other defaults change.)"
    )


def _kept_signal(scheduler: Any) -> torch.Tensor | None:
    """Return the cumulative alphas of the training timesteps, (T,); None for schedulers without."""
    alphas = getattr(scheduler, "alphas_cumprod", None)
    if alphas is None or not hasattr(scheduler, "config"):
        return None
    return torch.as_tensor(alphas).detach().double().cpu()


def _max_steps(scheduler: Any) -> tuple[int, str]:
    """Return how many steps a scheduler can take, and the setting that says so: that of LCM and TCD, or timesteps."""
    arguments = inspect.signature(type(scheduler).__init__).parameters  # configs keep what other classes had
    limited = "original_inference_steps" in arguments and _is_of_diffusers(scheduler)
    name = "original_inference_steps" if limited else "num_train_timesteps"
    return getattr(scheduler.config, name, sys.maxsize), name


def _is_of_diffusers(scheduler: Any) -> bool:
    methods = (getattr(scheduler, name, None) for name in ("step", "set_timesteps", "scale_model_input"))
    return all(getattr(method, "__module__", "diffusers.").startswith("diffusers.") for method in methods)


class _Trial:
    """A run of a copy of the scheduler on two images, equal but for small errors in the prediction of the second."""

    def __init__(
        self, scheduler, kept_signal: torch.Tensor, prediction_type: str, strength, keeps_known: bool, is_saved: bool
    ):
        self.scheduler, self.prediction_type, self.strength = copy.deepcopy(scheduler), prediction_type, strength
        self.keeps_known = keeps_known
        # what is known of an image leads it, so that more is forgiven
        self.tolerance = 1 if strength is None and not keeps_known and not is_saved else 2
        self.max_last_noise = 2 * MAX_LAST_NOISE if is_saved else MAX_LAST_NOISE
        self.log_snr = torch.logit(kept_signal.clamp(1e-9, 1 - 1e-9))  # linear between timesteps
        self.variance_type = getattr(scheduler.config, "variance_type", None)

    def run(self, num_inference_steps: int, schedule: Mapping[str, Any], judge: bool) -> str | None:
        """Return why the scheduler fails, or None; without `judge`, only for errors and values that are not finite.

        `schedule` is what its `set_timesteps` gets.
        """
        scheduler, generators = self.scheduler, [torch.Generator().manual_seed(0) for _ in range(2)]
        mean = torch.rand(1, 3, 16, 16, generator=generators[0]) * 1.6 - 0.8
        noise, own = (torch.randn(2, *mean.shape[1:], generator=torch.Generator().manual_seed(i)) for i in (1, 2))
        noise[1], own[1] = noise[0], own[0]
        contrast = torch.zeros(16)
        contrast[8:] = CONTRAST
        image = mean + contrast * own  # (2, 3, 16, 16); its columns from 8 on are unknown to the prediction
        generators[1].set_state(generators[0].get_state())
        extra = {"generator": generators} if "generator" in inspect.signature(scheduler.step).parameters else {}
        step, steps, reason = 0, num_inference_steps, None
        try:
            scheduler.set_timesteps(**schedule)
            timesteps, steps, first = scheduler.timesteps, len(scheduler.timesteps), 0
            if self.strength is not None:
                first = first_step(scheduler, num_inference_steps, self.strength)
            if (self.keeps_known or self.strength is not None) and hasattr(scheduler, "set_begin_index"):
                scheduler.set_begin_index(first)
            sample = noise * scheduler.init_noise_sigma
            if 0 < first < steps:
                sample = scheduler.add_noise(image, noise, timesteps[first : first + 1])
            for step in range(first, steps):
                t = timesteps[step]
                if not 0 <= float(t) <= len(self.log_snr) - 1 + 1e-3:
                    return f"its timestep {float(t):.6g} is not among the {len(self.log_snr)} of the training."
                signal, level = self.signal_and_noise(float(t))
                if self.keeps_known:
                    sample[..., 8:, :] = scheduler.add_noise(image, noise, timesteps[step : step + 1])[..., 8:, :]
                variance = (signal * contrast) ** 2 + level**2
                offset = scheduler.scale_model_input(sample, t) - signal * mean
                if judge and reason is None:
                    reason = self.judge_step(offset / variance**0.5, variance**0.5, step == steps - 1)
                    reason = reason and f"at step {step + 1} of {steps} {reason}"
                predicted = mean + contrast**2 * signal / variance * offset
                if level > HIGH_NOISE:
                    predicted[1] += SMALL_ERROR * (-1) ** step
                output = self.output(predicted, offset + signal * mean, signal, level)
                sample = scheduler.step(output, t, sample, **extra, return_dict=False)[0]
                if not torch.isfinite(sample).all():
                    return f"it gives values that are not finite at step {step + 1} of {steps}."
        except Exception as err:  # noqa: BLE001  whatever diffusers raises, an index or an assertion
            text = " ".join(str(err).split()) or "no message"
            return f"{type(err).__name__} at step {step + 1} of {steps} ({text.rstrip('.')})."
        if judge and reason is None and first < steps:
            reason = self.judge_result((sample - mean)[0], contrast)
        return reason

    def signal_and_noise(self, timestep: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Return sqrt(abar) and sqrt(1 - abar) of a timestep, which may lie between those of the training."""
        low, last = min(int(timestep), len(self.log_snr) - 1), len(self.log_snr) - 1
        alpha = torch.lerp(self.log_snr[low], self.log_snr[min(low + 1, last)], timestep - low).sigmoid().float()
        return alpha**0.5, (1 - alpha) ** 0.5

    def output(self, predicted: torch.Tensor, model_input: torch.Tensor, signal, level) -> torch.Tensor:
        """Return what the network would give to predict this image."""
        epsilon = (model_input - signal * predicted) / level
        types = {"epsilon": epsilon, "v_prediction": signal * epsilon - level * predicted}
        output = types.get(self.prediction_type, predicted)
        variance = {"learned": 1e-4, "learned_range": -1.0}.get(str(self.variance_type))  # -1: that of the posterior
        return output if variance is None else torch.cat([output, torch.full_like(output, variance)], dim=1)

    def judge_step(self, noise: torch.Tensor, expected: torch.Tensor, is_last: bool) -> str | None:
        """Return what is wrong with unit noise (2, 3, 16, 16) of expected standard deviations (16,), or None."""
        known, other = (float(part.std()) for part in (noise[0, ..., :8], noise[0, ..., 8:]))
        scale = expected / self.tolerance
        error, excess = (known - 1) * float(scale[0]), (other - 1) * float(scale[-1])
        if abs(error) > MAX_NOISE_ERROR or (is_last and error > self.max_last_noise):
            return f"the image holds {known:.3g} times the noise of its timestep."
        if excess > MAX_NOISE_EXCESS:
            return f"the image varies {other:.3g} times as much as expected."
        moved = float(((noise[1] - noise[0])[..., :8]).abs().mean() * scale[0])
        if moved > MAX_AMPLIFICATION and not hasattr(self.scheduler, "noise_sampler"):  # of noise that is not ours
            return f"small errors of the prediction become noise, {moved / SMALL_ERROR:.2g} times as large."
        return None

    def judge_result(self, error: torch.Tensor, contrast: torch.Tensor) -> str | None:
        """Return what is wrong with a result (3, 16, 16), less the mean, or None."""
        left = float(error[..., :8].square().mean().sqrt())
        if left > MAX_FINAL_ERROR * self.tolerance:
            return f"the result is {left:.2g} away from the image that it should be."
        ratio = float((error / contrast)[..., 8:].square().mean().sqrt())
        if not CONTRAST_RANGE[0] <= ratio <= CONTRAST_RANGE[1]:
            return f"the result has {ratio:.2g} times the contrast that it should have."
        return None


def first_step(scheduler: Any, num_inference_steps: int, strength: float) -> int:
    """Return the index of the first timestep that a strength leaves, after `set_timesteps`."""
    steps = min(int(num_inference_steps * strength), num_inference_steps)
    return (num_inference_steps - steps) * getattr(scheduler, "order", 1) if steps else len(scheduler.timesteps)
