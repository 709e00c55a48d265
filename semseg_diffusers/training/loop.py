"""One training run, read top to bottom: settings -> data -> network -> prepare -> resume -> loop -> save."""

import contextlib
import dataclasses
import math
import time
from pathlib import Path

import torch
from accelerate.logging import get_logger
from diffusers.optimization import get_scheduler
from torch.utils.data import DataLoader

from semseg_diffusers.data.dataset import PairDataset, attribute_values, column_options, load_pairs, read_record
from semseg_diffusers.pipelines.pipeline_mask_guided_ddpm import MaskGuidedDDPMPipeline
from semseg_diffusers.pipelines.portable import write_text
from semseg_diffusers.reports.run_page import page_at_end, update_run_page
from semseg_diffusers.training.base_model import load_base, load_first_weights
from semseg_diffusers.training.card import save_model_card
from semseg_diffusers.training.checkpoints import load_checkpoint, remove_leftovers, save_checkpoint, set_aside_later
from semseg_diffusers.training.class_balance import ClassBalance, ClassCounts, count_classes
from semseg_diffusers.training.dataset import FORWARD, ResumableBatchSampler, TrainingDataset, Warps, stream
from semseg_diffusers.training.ema import EMA
from semseg_diffusers.training.hardware import (
    build_accelerator,
    build_optimizer,
    check_regions,
    fit_optimizer_state,
    matrix_precision,
    save_contiguous,
    to_device,
)
from semseg_diffusers.training.monitor import DataTimer, LossMonitor, check_temporary_folder
from semseg_diffusers.training.networks import build_network, class_rarity
from semseg_diffusers.training.objective import (
    ClassWeighting,
    build_noise_scheduler,
    build_sampler,
    diffusion_loss,
    largest_loss_weight,
)
from semseg_diffusers.training.preemption import StopRequest, ignore_signals
from semseg_diffusers.training.preflight import collect_warnings
from semseg_diffusers.training.previews import (
    begin_tracking,
    draw_preview,
    preview_path,
    remove_later_previews,
    track_picture,
    trackers_of,
)
from semseg_diffusers.training.run import (
    RunLog,
    external_inputs,
    folder_to_resume,
    run_status,
    save_pipeline,
    write_record,
)
from semseg_diffusers.training.settings import TrainingSettings
from semseg_diffusers.training.sharding import choose_layers, is_sharded, trained_weights, whole_network
from semseg_diffusers.utils.distributed import exclusive_folder, launched_processes, run_on_all_ranks, run_on_main_rank
from semseg_diffusers.utils.images import save_png
from semseg_diffusers.utils.progress import progress_bar


logger = get_logger(__name__)


def train(settings: TrainingSettings) -> Path:
    """Train a network and save its pipeline.

    Args:
        settings: the whole run.

    Returns:
        the run folder: pipeline and card at its root, the page `run.html`, `settings.json`, `log.jsonl`, `previews/`,
        `checkpoint-<step>/`.

    Raises:
        ValueError: settings, data and network do not go together; a checkpoint of another run; a folder in use.
        FileNotFoundError: no such data set, or no such checkpoint.
        TrainingDivergedError: the loss is not finite or exploded.
        TrainingStoppedError: SIGTERM or the like; a checkpoint is saved.
        OSError: a checkpoint could not be written; the one before is whole.
    """
    # 1. processes
    trackers = trackers_of(settings.report_to)
    run = Path(settings.output_dir)
    accelerator = build_accelerator(settings, run, trackers)
    launched = launched_processes()
    if launched != accelerator.num_processes:
        raise ValueError(
            f"{launched} processes were launched, but this one is in a group of {accelerator.num_processes}: each "
            "would train alone into the same folder. Look at the configuration of accelerate (`accelerate env`)."
        )
    accumulation = settings.gradient_accumulation_steps
    samples_per_step = settings.train_batch_size * accumulation * accelerator.num_processes

    # 2. data, and the network that fits it: everything that can be refused is refused before the first step
    def read_data() -> tuple[PairDataset, PairDataset, str | None, str | None]:
        columns = column_options(settings)
        pairs = load_pairs(settings.dataset, settings.train_split, **columns)
        preview_pairs, preview_reason = _preview_pairs(settings, pairs, columns)
        return pairs, preview_pairs, preview_reason, read_record(settings.dataset).get("format")

    run_on_all_ranks(lambda: check_temporary_folder(settings.dataloader_num_workers))
    # one process builds the table of `datasets`, then the others find it
    data = run_on_all_ranks(read_data if accelerator.is_local_main_process else lambda: None)
    pairs, preview_pairs, preview_reason, source_format = run_on_all_ranks(lambda: data or read_data())
    attributes = run_on_all_ranks(lambda: attribute_values(pairs, settings.attributes))

    def count_masks(every_mask: bool) -> ClassCounts:
        threads = max(1, settings.dataloader_num_workers)
        return run_on_main_rank(lambda: count_classes(pairs, every_mask, threads))

    counts = balance = rarity = None
    if settings.class_balanced_sampling or settings.label_diffusion:
        counts = count_masks(every_mask=True)
    if settings.class_balanced_sampling:
        balance = run_on_all_ranks(
            lambda: ClassBalance(counts.pixels, settings.class_balance_temperature, settings.class_balance_min_share)
        )
    if settings.label_diffusion:
        rarity = run_on_all_ranks(lambda: class_rarity(counts.pixels))

    base = None if settings.base_model is None else run_on_all_ranks(lambda: load_base(settings))

    def build() -> torch.nn.Module:
        size = _sample_size(settings, pairs, preview_pairs)
        network = build_network(settings, pairs.labels, size, attributes, rarity, None if base is None else base.unet)
        check_regions(accelerator, network)
        if accelerator.is_fsdp2:
            choose_layers(accelerator, network)
        return network

    unet = run_on_all_ranks(build)
    if base is not None and base.noise_scheduler is not None:
        noise_scheduler = base.noise_scheduler
    else:
        noise_scheduler = build_noise_scheduler(settings)
    if settings.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    if settings.channels_last:
        unet.to(memory_format=torch.channels_last)
    found = external_inputs(unet)
    num_steps = settings.max_train_steps or math.ceil(settings.num_train_epochs * len(pairs) / samples_per_step)

    with contextlib.ExitStack() as held:
        # 3. the run folder, which the main process keeps to this run
        def take_folder() -> Path | None:
            held.enter_context(exclusive_folder(run, "training into"))
            checkpoint = folder_to_resume(
                settings, pairs, run, samples_per_step, balance, found, sharded=accelerator.is_fsdp2
            )
            remove_leftovers(run)
            return checkpoint

        resumed = run_on_main_rank(take_folder)
        if settings.init_from is not None and resumed is None:
            kept, without_place = run_on_all_ranks(lambda: load_first_weights(unet, settings.init_from))
            logger.info(f"first weights are those of {settings.init_from}")
            if kept:
                logger.info(f"weights that start anew: {', '.join(kept)}")
            if without_place:
                logger.info(f"weights there that have no place here: {', '.join(without_place)}")
        counts = counts or count_masks(every_mask=False)
        held.enter_context(page_at_end(run, accelerator))
        held.enter_context(matrix_precision(settings))
        stop = held.enter_context(StopRequest(accelerator))
        status = held.enter_context(run_status(run, accelerator))
        if accelerator.is_main_process:
            write_text(run / "settings.json", settings.to_json())
            cautions = collect_warnings(
                settings,
                pairs,
                counts,
                attributes=attributes,
                num_weights=sum(weight.numel() for weight in trained_weights(unet)),
                num_steps=num_steps,
                samples_per_step=samples_per_step,
                preview_pairs=preview_pairs,
                preview_reason=preview_reason,
                base=base,
            )
            for text in cautions:
                logger.warning(f"warning: {text}")
            write_record(
                run,
                accelerator,
                pairs.labels,
                counts,
                unet=unet,
                source_format=source_format,
                num_steps=num_steps,
                samples_per_step=samples_per_step,
                warnings=cautions,
            )
        if trackers:
            begin_tracking(accelerator, settings, run)
        logger.info(
            f"{accelerator.num_processes} process(es) on {accelerator.device.type}, {samples_per_step} samples a step"
            f"{', weights in shards' if accelerator.is_fsdp2 else ''}"
        )

        # 4. optimizer, schedule, averages of the weights
        optimizer = build_optimizer(settings, unet)
        lr_scheduler = get_scheduler(
            settings.lr_scheduler,
            optimizer,
            num_warmup_steps=settings.lr_warmup_steps,
            num_training_steps=num_steps,
        )
        unet, optimizer = accelerator.prepare(unet, optimizer)
        network = accelerator.unwrap_model(unet, keep_torch_compile=False)  # the same weights
        save_contiguous(accelerator)
        averages = EMA(network, settings) if settings.use_ema else None

        # 5. resume
        step, trained_seconds, mean_loss = 0, 0.0, math.nan
        if resumed is not None:
            state = load_checkpoint(resumed, accelerator, averages)
            step, trained_seconds, mean_loss = state["step"], state["trained_seconds"], state["loss"]
            fit_optimizer_state(settings, optimizer)
            accelerator.step = step * accumulation  # it counts forward passes, whose share of a step may have changed
            lr_scheduler.load_state_dict({**lr_scheduler.state_dict(), "last_epoch": step, "_step_count": step + 1})
            for group, rate in zip(optimizer.param_groups, _learning_rates(lr_scheduler, step), strict=True):
                group["lr"] = rate
            logger.info(f"resumed {resumed} at step {step}")
            if accelerator.is_main_process:
                set_aside_later(run, step)
                remove_later_previews(run, step)

        # 6. the samples still to come
        pairs.keep_decoded(int(settings.decoded_gigabytes * 1e9))
        warps = Warps(settings.augment_scale, settings.augment_translate, settings.augment_probability)
        samples = TrainingDataset(
            pairs,
            seed=settings.seed,
            horizontal_flip=settings.horizontal_flip,
            random_crop=settings.random_crop_size,
            mask_dropout=settings.mask_dropout,
            mask_dropout_group=samples_per_step if settings.mask_dropout_unit == "batch" else 1,
            min_timestep=settings.min_timestep,
            num_train_timesteps=settings.num_train_timesteps,
            warps=warps if warps.scale or warps.translate else None,
            mask_ablation=settings.mask_ablation,
            label_diffusion=rarity,
            attributes=attributes,
            attribute_dropout=settings.attribute_dropout,
        )
        loader = DataLoader(
            samples,
            batch_sampler=ResumableBatchSampler(
                num_pairs=len(pairs),
                batch_size=settings.train_batch_size,
                num_batches=num_steps * accumulation,
                seed=settings.seed,
                process_index=accelerator.process_index,
                num_processes=accelerator.num_processes,
                start_batch=step * accumulation,
                draw=None if balance is None else balance.draw,
            ),
            num_workers=settings.dataloader_num_workers,
            worker_init_fn=ignore_signals,
            pin_memory=accelerator.device.type == "cuda",
        )
        batches = DataTimer(loader)

        # 7. the loop: one turn is one forward pass; every `accumulation` turns make an optimizer step
        class_weighting = None
        if settings.class_loss_weighting:
            class_weighting = ClassWeighting(
                pairs.labels.num_classes, settings.class_loss_weight_max, settings.class_loss_min_snr
            )
        log = RunLog(run / "log.jsonl", step, enabled=accelerator.is_main_process)
        losses = LossMonitor(accelerator, run, accumulation, largest_loss_weight(settings))
        bar = progress_bar(total=num_steps, initial=step, desc="steps", disable=not accelerator.is_local_main_process)
        interval_start, interval_images = time.monotonic(), 0
        started = time.monotonic() - trained_seconds
        unet.train()
        for turn, batch in enumerate(batches, start=step * accumulation):
            batch = to_device(batch, accelerator.device, settings.channels_last)
            torch.manual_seed(
                stream(
                    settings.seed, FORWARD, turn * accelerator.num_processes + accelerator.process_index
                ).initial_seed()
            )
            with accelerator.accumulate(unet):
                with accelerator.autocast():
                    loss = diffusion_loss(unet, noise_scheduler, batch, settings.snr_gamma, class_weighting).mean()
                accelerator.backward(loss)
                if accelerator.sync_gradients and settings.max_grad_norm is not None:
                    accelerator.clip_grad_norm_(unet.parameters(), settings.max_grad_norm)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            losses.add(turn, loss, batch["stem"])
            interval_images += len(batch["stem"]) * accelerator.num_processes
            if not accelerator.sync_gradients:
                continue

            # an optimizer step is done
            step += 1
            status["step"] = step
            lr_scheduler.step()
            if averages is not None:
                averages.step(network)
            bar.update()
            stop_now = stop.agreed() and step < num_steps
            save_now = stop_now or step % settings.checkpointing_steps == 0 or step == num_steps
            if step % settings.logging_steps == 0 or save_now:
                mean_loss = losses.mean()
                seconds = time.monotonic() - interval_start
                values = {
                    "loss": mean_loss,
                    "learning_rate": lr_scheduler.get_last_lr()[0],
                    "images_per_second": interval_images / seconds,
                    "data_wait_share": batches.share_of(seconds),
                }
                log.write({"step": step, **values, "trained_seconds": time.monotonic() - started})
                accelerator.log(values, step=step)
                bar.set_postfix(loss=f"{mean_loss:.4f}", images_per_s=f"{interval_images / seconds:.1f}")
                interval_start, interval_images = time.monotonic(), 0
            if save_now:
                losses.check_weights(network, step)
                state = {
                    "trained_seconds": time.monotonic() - started,
                    "settings": dataclasses.asdict(settings),
                    "labels": pairs.labels.to_config(),
                    "num_pairs": len(pairs),
                    "class_pixels": None if balance is None else balance.digest,
                    **found,
                    "sharded": is_sharded(network),
                    "samples_per_step": samples_per_step,
                    "loss": mean_loss,
                }
                save_checkpoint(run, step, accelerator, averages, state, settings.checkpoints_total_limit)
            if stop_now:
                stop.part()
                raise stop.stopped(step)
            preview_now = settings.preview_steps and (step % settings.preview_steps == 0 or step == num_steps)
            if preview_now:
                if accelerator.is_main_process or is_sharded(network):
                    picture = draw_preview(settings, network, noise_scheduler, averages, preview_pairs)
                if accelerator.is_main_process:
                    preview_path(run, step).parent.mkdir(exist_ok=True)
                    save_png(preview_path(run, step), picture)
                    track_picture(accelerator, picture, step)
                accelerator.wait_for_everyone()
                unet.train()
            if (save_now or preview_now) and accelerator.is_main_process:
                update_run_page(run)
        bar.close()

        # 8. save the pipeline with the averaged weights, the others beside them, and its card
        accelerator.wait_for_everyone()
        network = whole_network(accelerator, network)
        if averages is not None:
            averages = averages.gathered(keep=accelerator.is_main_process)
        if accelerator.is_main_process:
            network.to(memory_format=torch.contiguous_format)  # what safetensors takes
            scheduler = noise_scheduler
            if settings.noise_schedule != "paper":
                scheduler = build_sampler(noise_scheduler)
            pipeline = MaskGuidedDDPMPipeline(unet=network.float().eval(), scheduler=scheduler)
            save_pipeline(pipeline, run, averages)
            save_model_card(
                run,
                settings=settings,
                unet=network,
                source_format=source_format,
                num_pairs=len(pairs),
                step=step,
                samples_per_step=samples_per_step,
                trained_seconds=time.monotonic() - started,
                loss=mean_loss,
            )
        stop.part()
    return run


def _sample_size(settings: TrainingSettings, pairs: PairDataset, preview_pairs: PairDataset) -> tuple[int, int]:
    """Height and width of what the network sees: the whole photos, which are of one size, or parts of them."""
    if settings.random_crop_size is None:
        return pairs.resolution
    for split in (pairs, preview_pairs):
        split.check_holds(*settings.random_crop_size)
    return settings.random_crop_size


def _preview_pairs(settings: TrainingSettings, pairs: PairDataset, columns: dict) -> tuple[PairDataset, str | None]:
    """Where the previews' masks come from, and why from the training split, where they do."""
    if not settings.preview_steps:
        return pairs, None
    if settings.validation_split == settings.train_split:
        return pairs, f"--validation_split is {settings.validation_split} as well"
    try:
        return load_pairs(settings.dataset, settings.validation_split, **columns), None
    except (FileNotFoundError, ValueError) as error:
        return pairs, str(error).rstrip(".")


def _learning_rates(lr_scheduler: torch.optim.lr_scheduler.LambdaLR, step: int) -> list[float]:
    return [base * rate(step) for base, rate in zip(lr_scheduler.base_lrs, lr_scheduler.lr_lambdas, strict=True)]
