"""Runs a study of one share of the real images: trains what is missing and writes results.json and report.html."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from semseg_diffusers.data.dataset import read_record
from semseg_diffusers.data.dataset_format import PSEUDO_LABELS
from semseg_diffusers.evaluation.segmentation.networks import build_segmenter
from semseg_diffusers.evaluation.segmentation.recolor import describe_recoloring
from semseg_diffusers.evaluation.segmentation.training import LabelledImages, describe_recipe
from semseg_diffusers.evaluation.settings import (
    SHARE,
    SYNTHETIC,
    SYNTHETIC_SETS,
    StudySettings,
    SyntheticUseOptions,
    Training,
    trainings,
)
from semseg_diffusers.evaluation.study import leaks, pools
from semseg_diffusers.evaluation.study.phases import class_losses, describe_use
from semseg_diffusers.evaluation.study.results import arms_and_comparisons, findings
from semseg_diffusers.evaluation.study.study_page import write_study_page
from semseg_diffusers.evaluation.study.training import TRAININGS, read_result, run_trainings, write_result
from semseg_diffusers.utils.files import code_commit, exclusive_folder, is_temporary, read_json, versions, write_json
from semseg_diffusers.utils.settings import differences


STUDY_FILE = "study.json"  # what all trainings of a folder share
RESULTS_FILE = "results.json"
PAGE_FILE = "report.html"


def run_study(
    settings: StudySettings,
    output: Path,
    *,
    device: str = "cpu",
    jobs: int = 1,
    baseline: str | None = None,
    show_progress: bool = False,
) -> dict[str, Any]:
    """Train what is missing, then write results and page.

    Args:
        settings: of the study, with one share of the real images.
        output: folder to create or resume.
        device: of the trainings; "cuda" distributes processes over the GPUs.
        jobs: parallel processes, at least 1.
        baseline: folder of another study, whose trainings without synthetic pairs are used.
        show_progress: show a progress bar on stderr.

    Returns:
        the content of `results.json`.

    Raises:
        ValueError: invalid data or settings, or a folder with trainings of other settings; a baseline that is none.
        ChildProcessError: a training process was killed.
    """
    if jobs < 1:
        raise ValueError(f"--jobs must be 1 or more; got {jobs}.")
    (share,) = settings.real_share
    settings = settings.of_share(share)
    if output.is_file():
        raise ValueError(f"--output '{output}' is a file; expected a folder.")
    if output.is_dir() and not (output / STUDY_FILE).is_file():
        foreign = sorted(path.name for path in output.iterdir() if not is_temporary(path))
        if foreign:
            raise ValueError(
                f"--output '{output}' is not empty and was not made by study (it holds {foreign[0]}). Choose another."
            )

    # 1. Data, and whether the validation images are unseen
    data = pools.load_data(settings)
    pools.check_amounts(settings, data)
    losses = class_losses(settings, data["real"].labels)
    weights = leaks.base_weights(settings)
    digests = {name: pools.image_digests(pairs) for name, pairs in data.items()}
    forced = leaks.find_leaks(settings, data, digests) + leaks.find_filter_as_judge(settings, weights)
    if forced and not settings.force:
        raise ValueError(f"{' '.join(forced)} To continue nevertheless, with a warning on the page: --force.")

    # 2. What all trainings of the folder share
    initial = build_segmenter(settings, data["real"].labels, data["real"].resolution, settings.seeds[0])
    record = {
        "settings": {
            **settings.schedule,
            **settings.synthetic_use,
            **({"class_losses": losses.key} if losses else {}),
        },
        "network": {
            "architecture": settings.architecture_name,
            "base_weights": weights,
            "num_parameters": initial.network.num_parameters(),
            "input_size": list(initial.input_size),
            "learning_rate": initial.learning_rate,
            **({"encoder": initial.encoder} if initial.encoder else {}),
        },
        "recipe": describe_recipe(initial.recipe),
        "data": {name: pools.data_hash(pairs, digests[name]) for name, pairs in data.items()},
    }
    all_trainings = trainings(settings)
    known = {}
    if baseline is not None:
        known = _read_baseline(Path(baseline.replace(SHARE, f"{share:g}")), record, all_trainings)
    with exclusive_folder(output, "studying in"):
        _open_output(output, record)

        # 3. Train every arm with every seed, then compare
        missing = [training for training in all_trainings if read_result(output, training) is None]
        for training in known.keys() & {*missing}:
            write_result(output, known[training])
            missing.remove(training)
        run_trainings(missing, settings, data, output, device, jobs, show_progress)
        trained = {training: result for training in all_trainings if (result := read_result(output, training))}
        results = _results(settings, data, record, trained, forced)
        write_json(output / RESULTS_FILE, results)
        write_study_page(output / PAGE_FILE, results, settings, data)
    return results


def _open_output(output: Path, record: Mapping[str, Any]) -> None:
    """Write what the trainings share; raise if the folder's trainings share something else."""
    file = output / STUDY_FILE
    for path in [*output.glob("*.tmp-*"), *(output / TRAININGS).glob("*.tmp-*")]:
        path.unlink()  # of an interrupted run; the folder is locked
    if file.is_file() and any((output / TRAININGS).glob("*.json")):
        saved, different = _read_study(file, record)
        if different:
            raise ValueError(
                f"--output '{output}' holds trainings with other settings ({different}). Choose another "
                "folder; only arms, seeds and amounts can be added."
            )
        record = {**record, "data": {**saved["data"], **record["data"]}}
    write_json(file, record)
    (output / TRAININGS).mkdir(exist_ok=True)


def _read_study(file: Path, record: Mapping[str, Any], *, synthetic: bool = True) -> tuple[dict[str, Any], str]:
    """Return what the trainings of a study share, and how it differs from `record`, in words.

    Without `synthetic`, only what trainings without synthetic pairs depend on.
    """
    use = set() if synthetic else {"class_losses", *(field.name for field in fields(SyntheticUseOptions))}
    hidden = set() if synthetic else SYNTHETIC_SETS
    try:
        saved = read_json(file)
        settings = ({k: v for k, v in each["settings"].items() if k not in use} for each in (saved, record))
        groups = [
            differences(*settings),
            *(differences(saved[group], record[group]) for group in ("network", "recipe")),
        ]
        shared = (saved["data"].keys() & record["data"].keys()) - hidden  # a set of only one is no difference
        images = ({f"{name} images": each["data"][name] for name in shared} for each in (saved, record))
        return saved, "; ".join(filter(None, (*groups, differences(*images))))
    except (ValueError, KeyError, TypeError, AttributeError) as err:
        raise ValueError(f"'{file}' is not a record of a study ({err}). Choose another folder.") from err


def _read_baseline(
    folder: Path, record: Mapping[str, Any], all_trainings: Sequence[Training]
) -> dict[Training, dict[str, Any]]:
    """Return the results of another study for trainings without synthetic pairs, which do not depend on their use.

    Raises:
        ValueError: not a study, one of other photos, network or recipe, or without any such result.
    """
    if not (folder / STUDY_FILE).is_file():
        raise ValueError(f"--baseline_from '{folder}' is not a study: it has no {STUDY_FILE}. Give the folder of one.")
    _, different = _read_study(folder / STUDY_FILE, record, synthetic=False)
    if different:
        raise ValueError(
            f"--baseline_from '{folder}' is a study with other settings ({different}), so its real photos have other "
            "scores. Omit it, or use the same settings."
        )
    real = [training for training in all_trainings if training.arm not in SYNTHETIC]
    known = {training: result for training in real if (result := read_result(folder, training))}
    if not known:
        names = ", ".join(training.name for training in real)
        raise ValueError(f"--baseline_from '{folder}' has none of the trainings that this study needs: {names}.")
    return known


def _results(
    settings: StudySettings,
    data: pools.StudyData,
    record: Mapping[str, Any],
    trained: Mapping[Training, dict[str, Any]],
    forced: list[str],
) -> dict[str, Any]:
    arms, comparisons = arms_and_comparisons(settings, trained.__getitem__)
    results = {
        "kind": "study",
        "settings": settings.record(),
        "seeds": list(settings.seeds),
        "arms": arms,
        "comparisons": comparisons,
        "absent": next(iter(trained.values()))["scores"]["absent"],
        "data": {name: {"num_images": len(pairs), "hash": record["data"][name]} for name, pairs in data.items()},
        "filters": leaks.filter_weights(settings),
        "resolution": list(data["real"].resolution),
        "network": record["network"],
        "recipe": record["recipe"],
        "commit": code_commit(),
        "versions": versions("torch", "transformers", "torchmetrics", "scipy"),
    }
    notes = ["The weights of the last step are scored on the full validation split; no selection was made with it."]
    notes += describe_use(settings, trained.values())
    if settings.validation_dataset is not None:
        notes.append(
            f"Scored on photos of '{settings.validation_dataset}' that no network has seen; real training photos are "
            f"of '{settings.dataset}'."
        )
    if settings.pseudo_labelled is not None:
        labelled = read_record(settings.pseudo_labelled)[PSEUDO_LABELS]
        notes.append(
            f"Photos of '{settings.pseudo_labelled}' have predictions of '{labelled['segmenter']}' "
            f"({labelled['weights_sha256']}) as labels, {100 * labelled['unknown_share']:.3g} % of the pixels unknown."
        )
    if "real_recolored" in settings.arms:
        notes.append(describe_recoloring(settings.recipe))
    absent = results["absent"]
    if absent:
        notes.append(f"No validation mask holds {', '.join(absent)}: not in the mean.")
    pixels = LabelledImages(data["real"]).pixels
    unseen = [name for name, count in zip(data["real"].labels.names, pixels, strict=True) if count == 0]
    notes.append(
        "Classes are weighted by their share of the real training pixels, equally in all arms."
        + (f" {', '.join(unseen)}: in no real training mask, so without weight." if unseen else "")
    )
    if settings.filtered is not None:
        known = results["filters"]["filtered"]
        by = f"by a network with weights {known}" if known else "by an unknown network"
        encoder = " and an encoder from ImageNet" if settings.has_backbone and settings.pretrained_encoder else ""
        start = f"'{settings.base_model}'" if settings.base_model else f"random weights{encoder}"
        notes.append(f"'{settings.filtered}' was filtered {by}. The networks of this study are trained from {start}.")
    least = min(arm["passes"] for arm in results["arms"])
    if least < 1:
        notes.append(f"The largest pool was not seen in full: {least:.2f} passes. Increase --max_train_steps.")
    return {
        **results,
        "findings": [{"topic": topic, "text": text} for topic, text in findings(results).items()],
        "forced": forced,
        "notes": [*forced, *notes],
    }
