"""The command `study`; of several shares of the real images, one study each in a folder of its own, and a curve."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from semseg_diffusers.evaluation.settings import StudyCommandSettings, StudySettings
from semseg_diffusers.evaluation.study.results import BETTER, CONFIDENCE, WORSE, title
from semseg_diffusers.evaluation.study.study import PAGE_FILE, RESULTS_FILE, run_study
from semseg_diffusers.evaluation.study.study_page import study_command
from semseg_diffusers.evaluation.study.training import default_jobs
from semseg_diffusers.reports.plots import line_plot
from semseg_diffusers.reports.render import write_page
from semseg_diffusers.utils.distributed import choose_device
from semseg_diffusers.utils.files import LOCK_FILE, code_commit, versions, write_json


def share_folder(share: float) -> str:
    """Return the name of the folder of the study of one share."""
    return f"share_{share:g}"


def run_shares(settings: StudySettings, output: Path, **options: Any) -> dict[str, Any]:
    """Run a study for each share, the smallest first, then write results and page of all of them.

    Args:
        settings: of the study, with several shares.
        output: folder to create or resume.
        options: as of `run_study`.

    Returns:
        the content of `results.json`: `shares`, each with `arms` and `comparisons` as in its own `results.json`.

    Raises:
        ValueError: as `run_study`; a folder that holds something else.
    """
    shares = sorted(settings.real_share)
    if output.is_dir():
        ours = (RESULTS_FILE, PAGE_FILE, LOCK_FILE)
        foreign = sorted(
            path.name for path in output.iterdir() if path.name not in ours and not path.name.startswith("share_")
        )
        if foreign:
            raise ValueError(
                f"--output '{output}' holds {foreign[0]}, which is not of a study of several shares. Choose another."
            )
    found = []
    for share in shares:
        results = run_study(settings.of_share(share), output / share_folder(share), **options)
        entry = {name: results[name] for name in ("arms", "comparisons", "findings", "forced", "data")}
        found.append({"share": share, "num_real": results["data"]["real"]["num_images"], **entry})
    joint = {
        "kind": "study_of_shares",
        "settings": settings.record(),
        "seeds": list(settings.seeds),
        "shares": found,
        "findings": [{"topic": topic, "text": text} for topic, text in share_findings(found).items()],
        "commit": code_commit(),
        "versions": versions("torch", "transformers", "torchmetrics", "scipy"),
    }
    write_json(output / RESULTS_FILE, joint)
    write_shares_page(output / PAGE_FILE, joint)
    return joint


def gains_over_real(entry: Mapping[str, Any]) -> dict[str, str]:
    """Return the difference of each arm to real images at one share, with its interval, by the title of the arm."""
    gains = {}
    for each in entry["comparisons"]:
        if each["against"]["arm"] == "real":
            found = each["mean_iou"]
            interval = "" if found["low"] is None else f" ({found['low']:+.3f} to {found['high']:+.3f})"
            gains[title(each["arm"], each["amount"])] = f"{found['mean']:+.3f}{interval}"
    return gains


def share_findings(shares: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return what each arm gains over real images at each share, and how many comparisons there were."""
    found: dict[str, list[str]] = {}
    for entry in shares:
        for topic, gain in gains_over_real(entry).items():
            text = f"{gain} with {entry['num_real']:,} photos"
            found.setdefault(topic[0].upper() + topic[1:], []).append(text)
    texts = {topic: f"mean IoU {', '.join(gains)}." for topic, gains in found.items()}
    readings = [each["mean_iou"]["reading"] for entry in shares for each in entry["comparisons"]]
    beyond = sum(reading in (BETTER, WORSE) for reading in readings)
    chance = len(readings) * (1 - CONFIDENCE)
    texts["Comparisons"] = (
        f"{beyond} of {len(readings)} differences of mean IoU are beyond noise; without any true difference about "
        f"{chance:.1f} would be, by chance."
    )
    return texts


def write_shares_page(path: Path, results: Mapping[str, Any]) -> None:
    """Write the page of all shares."""
    lines: dict[str, list[tuple[float, float | None]]] = {}
    cells: dict[str, list[str]] = {}
    for entry in results["shares"]:
        gains = gains_over_real(entry)
        for arm in entry["arms"]:
            name, mean = arm["title"], arm["mean_iou"]["mean"]
            lines.setdefault(name, []).append((entry["num_real"], mean))
            cells.setdefault(name, []).append(f"{mean:.3f}, {gains[name]}" if name in gains else f"{mean:.3f}")
    write_page(
        path,
        "study_of_shares.html.j2",
        results=results,
        curve=line_plot(lines, "real training photos", "mean IoU, mean over seeds"),
        headers=["trained on", *(f"{entry['num_real']:,} photos" for entry in results["shares"])],
        rows=[[name, *texts] for name, texts in cells.items()],
        pages=[(f"{entry['share']:g}", f"{share_folder(entry['share'])}/{PAGE_FILE}") for entry in results["shares"]],
        command=study_command(results["settings"]),
    )


def run(settings: StudyCommandSettings) -> None:
    """Run the study and print its findings."""
    device = choose_device(settings.device)
    sys.stderr.write(settings.fallback_hint or "")
    output = Path(settings.output)
    study = run_study if len(settings.real_share) == 1 else run_shares
    jobs, baseline = settings.jobs or default_jobs(device), settings.baseline_from
    results = study(settings, output, device=device, jobs=jobs, baseline=baseline, show_progress=True)
    text = "".join(f"{each['topic']}: {each['text']}\n" for each in results["findings"])
    sys.stdout.write(f"{text}page and results: {output / PAGE_FILE}\n")
