"""What lies in a run folder and what may go on there: settings, log, the saved pipeline, the checkpoint to resume."""

import json
import os
import shutil
from pathlib import Path

from accelerate.logging import get_logger

from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.data.layout import SETTINGS_FILE
from semseg_diffusers.data.loading import PairDataset
from semseg_diffusers.pipelines.pipeline_mask_guided_ddpm import MaskGuidedDDPMPipeline, write_text
from semseg_diffusers.training.checkpoints import STATE, find_checkpoint, list_checkpoints
from semseg_diffusers.training.settings import TrainingSettings


logger = get_logger(__name__)

# Settings that may differ between a checkpoint and the run that resumes it; any other would make it another run.
CHANGEABLE_ON_RESUME = frozenset(
    (
        "dataset", "output_dir", "validation_split", "dataloader_num_workers", "max_train_steps", "num_train_epochs",
        "checkpointing_steps", "checkpoints_total_limit", "resume_from_checkpoint", "logging_steps", "preview_steps",
        "preview_masks", "preview_samples", "preview_inference_steps", "preview_guidance_scale", "report_to", "device",
        "gradient_checkpointing",
    )
)  # fmt: skip


class RunLog:
    """`log.jsonl` of a run: one JSON line an interval; a resumed run drops the lines after its checkpoint."""

    def __init__(self, path: Path, step: int, enabled: bool):
        self.path = path
        self.enabled = enabled
        self.last: dict = {}
        if enabled:
            lines = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
            kept = [line for line in lines if line["step"] <= step]
            self.last = kept[-1] if kept else {}
            write_text(path, "".join(json.dumps(line) + "\n" for line in kept))

    def write(self, values: dict) -> None:
        self.last = values
        if self.enabled:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(values) + "\n")


def save_pipeline(pipeline: MaskGuidedDDPMPipeline, folder: Path) -> None:
    """Save a pipeline beside its place and move it there, file by file, so that no file is ever half-written."""
    staging = folder / ".pipeline.writing"
    shutil.rmtree(staging, ignore_errors=True)
    try:
        pipeline.save_pretrained(staging)
        for path in sorted(path for path in staging.rglob("*") if path.is_file()):
            target = folder / path.relative_to(staging)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def source_format(dataset: str) -> str | None:
    """What a prepared folder was made from, as `prepare` wrote it down."""
    record = Path(dataset) / SETTINGS_FILE
    return json.loads(record.read_text(encoding="utf-8")).get("format") if record.is_file() else None


def folder_to_resume(settings: TrainingSettings, pairs: PairDataset, run: Path) -> Path | None:
    """The checkpoint to go on from, or None; a run folder in use is not overwritten without a word."""
    if settings.resume_from_checkpoint is None:
        if list_checkpoints(run) or (run / "model_index.json").exists():
            raise ValueError(
                f"--output_dir {run} already holds a run. Go on with it by --resume_from_checkpoint latest, or name "
                "another folder."
            )
        return None
    checkpoint = find_checkpoint(run, settings.resume_from_checkpoint)
    if checkpoint is None:
        logger.warning(f"{run} holds no whole checkpoint: the run starts at step 0")
        return None
    state = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    trained, given = LabelSet.from_config(state["labels"]), pairs.labels
    if trained != given:
        raise ValueError(
            f"{checkpoint} draws {trained.num_classes} classes ({', '.join(trained.names[:3])}, ...), the data has "
            f"{given.num_classes} ({', '.join(given.names[:3])}, ...). Resume with the data set of the run, or start "
            "a new run in another folder."
        )
    if state["num_pairs"] != len(pairs):
        raise ValueError(
            f"{checkpoint} was trained on {state['num_pairs']} pairs, the data set now has {len(pairs)}. Resume with "
            "the data set of the run, or start a new run in another folder."
        )
    saved, now = state["settings"], json.loads(settings.to_json())
    differing = [name for name in now if name not in CHANGEABLE_ON_RESUME and saved.get(name) != now[name]]
    if differing:
        was = ", ".join(f"--{name} {saved.get(name)} (now {now[name]})" for name in differing)
        raise ValueError(f"{checkpoint} is of a run with other settings: {was}. Give the same, or start a new run.")
    return checkpoint
