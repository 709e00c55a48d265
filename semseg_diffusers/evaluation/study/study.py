"""Runs a study: trains what is missing and writes results.json and report.html."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from semseg_diffusers.evaluation.results import code_commit, versions
from semseg_diffusers.evaluation.segmentation.settings import DEFAULT_ARCHITECTURE
from semseg_diffusers.evaluation.segmentation.training import RECIPE, LabelledImages
from semseg_diffusers.evaluation.study.pools import (
    StudyData,
    base_weights,
    check_amounts,
    data_hash,
    filter_weights,
    find_filter_as_judge,
    find_leaks,
    load_data,
    photo_digests,
)
from semseg_diffusers.evaluation.study.results import arms_and_comparisons, findings
from semseg_diffusers.evaluation.study.settings import SHARED, StudyCommandSettings, StudySettings, trainings
from semseg_diffusers.evaluation.study.training import (
    TRAININGS,
    default_jobs,
    initial_network,
    read_result,
    run_trainings,
)
from semseg_diffusers.pipelines.portable import write_text
from semseg_diffusers.reports.study_page import write_study_page
from semseg_diffusers.utils.distributed import LOCK_FILE, check_device_available, exclusive_folder


STUDY_FILE = "study.json"  # what all trainings of a folder share
RESULTS_FILE = "results.json"
PAGE_FILE = "report.html"


def run_study(
    settings: StudySettings, output: Path, *, device: str = "cpu", jobs: int = 1, show_progress: bool = False
) -> dict[str, Any]:
    """Train what is missing, then write results and page.

    Args:
        settings: of the study.
        output: folder to make, or to go on in.
        device: where networks are trained; "cuda" gives each process a GPU in turn.
        jobs: processes at once, at least 1.
        show_progress: show a bar on stderr.

    Returns:
        what `results.json` holds.

    Raises:
        ValueError: data or settings are refused, or the folder holds trainings with others.
        ChildProcessError: a training process failed.
    """
    if jobs < 1:
        raise ValueError(f"--jobs must be at least 1; got {jobs}.")
    check_output(output)
    data = load_data(settings)
    check_amounts(settings, data)
    weights = base_weights(settings)
    digests = {name: photo_digests(pairs) for name, pairs in data.sets.items()}
    forced = find_leaks(settings, data, digests) + find_filter_as_judge(settings, weights)
    if forced and not settings.force:
        raise ValueError(f"{' '.join(forced)} To go on all the same, and have the page say so: --force.")
    initial = initial_network(settings, data, settings.seeds[0])
    record = {
        "settings": {name: getattr(settings, name) for name in SHARED},
        "network": {
            "architecture": settings.architecture or (None if settings.base_model else DEFAULT_ARCHITECTURE),
            "base_weights": weights,
            "num_parameters": sum(parameter.numel() for parameter in initial.network.parameters()),
            "input_size": list(initial.input_size),
            "learning_rate": initial.learning_rate,
        },
        "recipe": RECIPE,
        "data": {name: data_hash(pairs, digests[name]) for name, pairs in data.sets.items()},
    }
    with exclusive_folder(output, "studying in"):
        _open_output(output, record)
        missing = [training for training in trainings(settings) if read_result(output, training) is None]
        run_trainings(missing, settings, data, output, device, jobs, show_progress)
        results = _results(settings, data, record, output, forced)
        write_text(output / RESULTS_FILE, json.dumps(results, indent=2) + "\n")
        write_study_page(output / PAGE_FILE, results, settings, data)
    return results


def check_output(output: Path) -> None:
    """Refuse a folder that holds anything but a study.

    Raises:
        ValueError: naming what it holds.
    """
    if output.is_file():
        raise ValueError(f"--output '{output}' is a file; wanted a folder.")
    if output.is_dir() and not (output / STUDY_FILE).is_file():
        foreign = sorted(path.name for path in output.iterdir() if path.name != LOCK_FILE and ".tmp-" not in path.name)
        if foreign:
            raise ValueError(
                f"--output '{output}' is not empty and was not made by study (it holds {foreign[0]}); name another."
            )


def _open_output(output: Path, record: Mapping[str, Any]) -> None:
    """Write what the trainings share, or refuse a folder whose trainings share something else.

    Raises:
        ValueError: naming what differs.
    """
    file = output / STUDY_FILE
    for path in [*output.glob("*.tmp-*"), *(output / TRAININGS).glob("*.tmp-*")]:
        path.unlink()  # of a run that was killed; nobody else writes here
    if file.is_file() and any((output / TRAININGS).glob("*.json")):
        try:
            there = json.loads(file.read_text(encoding="utf-8"))
            different = _differences(there, record)
        except (json.JSONDecodeError, AttributeError, KeyError, TypeError) as err:
            raise ValueError(f"'{file}' is no record of a study ({err}); name another --output.") from err
        if different:
            raise ValueError(
                f"--output '{output}' holds trainings with other settings ({'; '.join(different)}). Name another "
                "folder; arms, seeds and amounts alone may be added to."
            )
        record = {**record, "data": {**there["data"], **record["data"]}}
    write_text(file, json.dumps(record, indent=2) + "\n")
    (output / TRAININGS).mkdir(exist_ok=True)


def _differences(there: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What two records say differently; a set of images that only one of them has changes nothing of the others."""
    different = []
    for group in ("settings", "network", "recipe", "data"):
        old, new = there[group], now[group]
        for name in sorted(set(old) & set(new) if group == "data" else {*old, *new}):
            if old.get(name) != new.get(name):
                what = f"{name} images" if group == "data" else name
                different.append(f"{what}: {old.get(name)} there, {new.get(name)} now")
    return different


def _results(
    settings: StudySettings,
    data: StudyData,
    record: Mapping[str, Any],
    output: Path,
    forced: list[str],
) -> dict[str, Any]:
    arms, comparisons = arms_and_comparisons(settings, lambda training: read_result(output, training))
    scores = read_result(output, trainings(settings)[0])["scores"]
    results = {
        "kind": "study",
        "settings": settings.record(),
        "seeds": list(settings.seeds),
        "arms": arms,
        "comparisons": comparisons,
        "absent": scores["absent"],
        "data": {name: {"num_images": len(pairs), "hash": record["data"][name]} for name, pairs in data.sets.items()},
        "filters": {
            name: filter_weights(getattr(settings, name))
            for name in ("generated", "filtered")
            if getattr(settings, name) is not None
        },
        "resolution": list(data.real.resolution),
        "network": record["network"],
        "recipe": record["recipe"],
        "commit": code_commit(),
        "versions": versions("torch", "transformers", "torchmetrics", "scipy"),
    }
    results["findings"] = [finding._asdict() for finding in findings(results)]
    results["forced"] = forced
    results["notes"] = [*forced, *_notes(settings, data, results)]
    return results


def _notes(settings: StudySettings, data: StudyData, results: Mapping[str, Any]) -> list[str]:
    """What a reader should know of how the figures came to be."""
    notes = [
        "The weights of the last step are scored, on the whole validation split at once; nothing was chosen by it."
    ]
    absent = results["absent"]
    if absent:
        notes.append(f"No validation mask holds {', '.join(absent)}: not in the mean.")
    pixels = LabelledImages(data.real).pixels
    unseen = [name for name, count in zip(data.real.labels.names, pixels, strict=True) if count == 0]
    notes.append(
        "Classes are weighted by their share of the real training pixels, in every arm alike."
        + (f" {', '.join(unseen)}: in no real training mask, so without weight." if unseen else "")
    )
    if settings.filtered is not None:
        known = results["filters"]["filtered"]
        by = f"by a network with weights {known}" if known else "by a network that it does not name"
        begin = f"'{settings.base_model}'" if settings.base_model else "random weights"
        notes.append(
            f"'{settings.filtered}' was filtered {by}. The networks of this study are trained anew, from {begin}."
        )
    least = min(arm["passes"] for arm in results["arms"])
    if least < 1:
        notes.append(f"The largest pool was not seen whole: {least:.2f} passes. Give more --max_train_steps.")
    return notes


def run(settings: StudyCommandSettings) -> None:
    """Run the study and print its findings."""
    device = settings.device or ("cuda" if torch.cuda.is_available() else "cpu")
    check_device_available(device)
    output, jobs = Path(settings.output), settings.jobs or default_jobs(device)
    results = run_study(settings, output, device=device, jobs=jobs, show_progress=True)
    text = "".join(f"{each['topic']}: {each['text']}\n" for each in results["findings"])
    sys.stdout.write(f"{text}page and results: {output / PAGE_FILE}\n")
