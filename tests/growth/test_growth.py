"""Growing a dataset: the stages and their commands, their results, and how an interrupted loop resumes."""

import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler
from helpers.generation_places import LABELS, save_masks, tiny_pipeline
from PIL import Image

from semseg_diffusers import LabelSet, MaskGuidedDDPMPipeline, MaskGuidedUNet2DModel, cli
from semseg_diffusers.data.dataset import load_pairs
from semseg_diffusers.data.dataset_format import finish_dataset, make_split, save_pair
from semseg_diffusers.generation.output_folder import read_metadata
from semseg_diffusers.growth.grow import run_stage
from semseg_diffusers.growth.settings import ORDER, STAGES, GrowSettings
from semseg_diffusers.growth.stages import make_stages
from semseg_diffusers.hub.cards import dataset_card
from semseg_diffusers.hub.folders import check_dataset_folder


ROOT = Path(__file__).resolve().parents[2]


def command(*words: object) -> int:
    return cli.main([str(word) for word in words])


# The plan ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Path:
    """Return a dataset of street scenes, 40 for training and four for validation."""
    folder = tmp_path_factory.mktemp("toy") / "data"
    assert command("toy", "--output", folder, "--num_train", 40, "--num_val", 4, "--resolution", "96x128") == 0
    return folder


@pytest.fixture(scope="module")
def model(toy, tmp_path_factory) -> Path:
    """Return an untrained model of the scenes' classes."""
    labels = LabelSet.from_json(toy / "labels.json")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = MaskGuidedUNet2DModel(
            sample_size=(96, 128),
            num_classes=labels.num_classes,
            block_out_channels=(8, 16),
            down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            norm_num_groups=4,
            **labels.to_config(),
        )
    folder = tmp_path_factory.mktemp("model") / "run"
    MaskGuidedDDPMPipeline(unet=unet.eval(), scheduler=DDIMScheduler()).save_pretrained(folder)
    return folder


def test_dry_run_prints_a_command_for_each_stage(toy, tmp_path, capsys):
    assert command("grow", "--dataset", toy, "--output", tmp_path / "grown", "--dry_run", "--num_masks", 7) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == [STAGES[stage] for stage in ORDER]
    assert "--num_masks 7" in lines[ORDER.index("enrich")]
    assert not (tmp_path / "grown").exists()


def test_what_is_given_is_no_stage(toy, model, tmp_path, capsys):
    words = ("grow", "--dataset", toy, "--output", tmp_path / "grown", "--dry_run", "--model", model)
    assert command(*words, "--filter_segmenter", "user/network", "--masks", "painted") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["stats", "generate", "filter", "study", "merge"]
    assert f"--model {model} --masks painted" in lines[1]
    assert "--segmenter user/network" in lines[2]


def test_a_student_beside_the_model_generates_unless_told_otherwise(toy, model, tmp_path, capsys):
    base, student = (shutil.copytree(model, tmp_path / name) for name in ("base", "base-turbo"))
    words = ("grow", "--dataset", toy, "--output", tmp_path / "grown", "--dry_run", "--masks", "painted")
    found = []
    for options in (["--model", f"{base}/"], ["--model", base, "--student", "off"], ["--model", model]):
        assert command(*words, *options) == 0
        (line,) = (line for line in capsys.readouterr().out.splitlines() if line.split()[1] == "generate")
        found.append(line.split()[3])
    assert found == [str(student), str(base), str(model)]
    # a loop that started with the model itself continues with it, even if a student has been made since
    progress = {
        "stages": {"generate": {"command": ["generate", "--model", str(base), "--masks", "m", "--output", "o"]}}
    }
    (tmp_path / "grown").mkdir()
    (tmp_path / "grown" / "grow.json").write_text(json.dumps(progress))
    assert command(*words, "--model", base) == 0
    assert f"--model {base} " in capsys.readouterr().out
    assert command(*words, "--model", f"{base}/") == 0
    assert str(student) not in capsys.readouterr().out
    assert command(*words, "--student", student) == 2
    assert "--student is for a --model that exists" in capsys.readouterr().err


def test_masks_in_which_nothing_can_be_placed_are_asked_for(model, tmp_path, capfd):
    small_dataset(tmp_path / "data")
    words = ("grow", "--dataset", tmp_path / "data", "--output", tmp_path / "grown", "--model", model)
    assert command(*words, "--until", "enrich") == 2
    assert "--masks" in capfd.readouterr().err


def test_changes_reach_their_stage():
    changes = ("study.jobs=2", "generate.skip_errors=true", "generate.attributes=weather=rainy,timeofday=night")
    changes += ("filter.segmenter_size=32x64",)
    changes += ("generate.scheduler=UniPCMultistepScheduler:solver_order=1,predict_x0=false",)
    stages = make_stages(GrowSettings(dataset="d", output=Path("o"), set=changes), ["car=2"], 3)
    settings = {stage.name: stage.settings for stage in stages}
    assert settings["generate"].skip_errors
    assert settings["generate"].attributes == ("weather=rainy", "timeofday=night")
    assert settings["generate"].scheduler == "UniPCMultistepScheduler:solver_order=1,predict_x0=false"
    assert settings["study"].jobs == 2
    assert settings["filter"].segmenter_size == (32, 64)


def test_the_printed_command_gives_the_settings_of_its_stage():
    for stage in make_stages(GrowSettings(dataset="d", output=Path("o"), labels="camvid"), ["car=2", "person=3"], 3):
        _, name, *words = shlex.split(stage.command)
        assert cli.command_parser(name).parse_settings(words) == stage.settings


def test_the_network_that_filters_has_no_seed_of_the_study():
    settings = GrowSettings(dataset="d", output=Path("o"), seeds=(0, 1, 2, 3))
    (segmenter,) = (stage for stage in make_stages(settings, ["car=2"], 3) if stage.name == "segmenter")
    assert segmenter.settings.seed not in settings.seeds


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--num_masks", 0), "--num_masks must be 1 or more"),
        (("--num_images_per_mask", 0), "--num_images_per_mask must be 1 or more"),
        (("--seed", -1), "--seed must be 0 or more"),
        (("--set", "jobs=2"), "expected STAGE.OPTION=VALUE"),
        (("--set", "study.jobs="), "expected STAGE.OPTION=VALUE"),
        (("--set", "paint.jobs=2"), "there is no stage 'paint'"),
        (("--set", "study.no_such_option=2"), "stage study: --set: unknown option"),
        (("--set", "study.jobs=many"), "stage study: --set: --jobs: expected a whole number"),
        (("--set", "filter.generated=elsewhere"), "grow sets it itself"),
        (("--model", "run", "--set", "train.max_train_steps=3"), "there is no such stage"),
        (("--model", "run", "--until", "train"), "no such stage"),
        (("--masks", "new", "--wish", "car=2"), "with --masks none are made"),
        (("--config_file", "no.yaml"), "there is no file 'no.yaml'"),
    ],
)
def test_what_no_stage_could_do_is_refused_before_the_first(toy, tmp_path, capsys, words, message):
    assert command("grow", "--dataset", toy, "--output", tmp_path / "grown", *words) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "grown").exists()


# Stages that are done ----------------------------------------------------------------------------------------------


def test_underrepresented_classes_are_the_default_target_and_other_options_are_refused(toy, model, tmp_path, capfd):
    words = ("grow", "--dataset", toy, "--output", tmp_path / "grown", "--model", model, "--until", "enrich")
    assert command(*words, "--num_masks", 2) == 0
    targets = json.loads((tmp_path / "grown/enrich/enrich.json").read_text())["wishes"]  # codespell:ignore wishes
    weak = json.loads((tmp_path / "grown/statistics/stats.json").read_text())["weak_classes"]
    assert targets
    assert {entry["name"] for entry in targets} <= {entry["name"] for entry in weak}
    page = (tmp_path / "grown/index.html").read_text()
    assert "Still to be done: generate, segmenter, filter, study, merge" in page
    capfd.readouterr()
    assert command(*words, "--num_masks", 2) == 0
    assert "[enrich]" not in capfd.readouterr().out
    state = json.loads((tmp_path / "grown/grow.json").read_text())
    for done in (True, False):  # complete, but killed before that was recorded
        state["stages"]["enrich"]["done"] = done
        (tmp_path / "grown/grow.json").write_text(json.dumps(state))
        assert command(*words, "--num_masks", 3) == 2
        assert "stage enrich was done with other options" in capfd.readouterr().err


def test_a_stage_that_fails_ends_the_loop(toy, model, tmp_path, capfd):
    words = ("grow", "--dataset", toy, "--output", tmp_path / "grown", "--until", "generate", "--model", model)
    assert command(*words, "--masks", tmp_path / "none") == 2
    assert "error: stage generate: no mask file and no folder of masks at" in capfd.readouterr().err
    stages = json.loads((tmp_path / "grown/grow.json").read_text())["stages"]
    assert {name: stage["done"] for name, stage in stages.items()} == {"statistics": True, "generate": False}


def test_a_finished_segmenter_is_used_again_and_one_that_was_stopped_is_not(toy, model, tmp_path, capfd):
    settings = GrowSettings(
        dataset=str(toy), output=tmp_path, model=str(model), device="cpu",
        set=("segmenter.architecture=segformer-mini", "segmenter.max_train_steps=1"),
    )  # fmt: skip
    (stage,) = (stage for stage in make_stages(settings, ["car=2"], 3) if stage.name == "segmenter")
    for _ in range(2):
        assert run_stage(stage, None) == 0
    assert capfd.readouterr().err.count("Training segformer-mini on the 40 pairs") == 1
    record = json.loads((stage.folder / "segmenter.json").read_text())
    (stage.folder / "segmenter.json").write_text(json.dumps({**record, "stopped_by": "SIGTERM"}))
    with pytest.raises(ValueError, match="stage segmenter: .*stopped_by: SIGTERM there.*Give --filter_segmenter"):
        run_stage(stage, None)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_stage_and_the_same_command_resumes_it(toy, model, tmp_path, monkeypatch, capfd, number):
    shutil.copytree(toy / "val/masks", tmp_path / "masks")
    words = ["grow", "--dataset", toy, "--output", tmp_path / "grown", "--until", "generate", "--model", model]
    words += ["--masks", tmp_path / "masks", "--num_images_per_mask", 1, "--device", "cpu"]
    words += ["--set", "generate.num_inference_steps=2", "generate.batch_size=1"]
    step, calls = DDIMScheduler.step, []

    def interrupted(*args, **kwargs):
        calls.append(0)
        if len(calls) == 4:  # in the second image
            os.kill(os.getpid(), number)
        return step(*args, **kwargs)

    monkeypatch.setattr(DDIMScheduler, "step", interrupted)
    if number == signal.SIGINT:
        before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
        try:
            assert command(*words) == 130
        finally:
            signal.signal(signal.SIGINT, before)
    else:
        with pytest.raises(SystemExit) as ended:
            command(*words)
        assert ended.value.code == 143
    monkeypatch.undo()
    assert [row["synthetic"] for row in read_metadata(tmp_path / "grown/generate")] == [True]
    assert command(*words) == 0
    assert "3 images generated, 1 kept" in capfd.readouterr().out


# The merged dataset -----------------------------------------------------------------------------------------------


def small_dataset(folder: Path, size: int = 16) -> Path:
    """Write two training pairs, with weather, and one for validation."""
    rows = {}
    for split, count in (("train", 2), ("val", 1)):
        place, rows[split] = make_split(folder, split), []
        for number in range(count):
            ids = torch.randint(0, 5, (size, size), generator=torch.Generator().manual_seed(number)).byte().numpy()
            photo = Image.new("RGB", (size, size), (number, 2, 3))
            rows[split].append({**save_pair(place, f"p{number}", photo, ids, LABELS), "weather": "rainy"})
    finish_dataset(folder, rows, LABELS, {"format": "camvid"})
    return folder


@pytest.fixture(scope="module")
def generated(tmp_path_factory) -> Path:
    """Return a folder with two images of each of three masks."""
    folder = tmp_path_factory.mktemp("generated")
    tiny_pipeline().save_pretrained(folder / "run")
    words = (
        "generate",
        "--model",
        folder / "run",
        "--masks",
        save_masks(folder / "masks"),
        "--output",
        folder / "new",
    )
    assert command(*words, "--num_images_per_mask", 2, "--num_inference_steps", 2) == 0
    return folder / "new"


def test_merged_set_holds_both_and_says_which_is_which(generated, tmp_path, capsys):
    data = small_dataset(tmp_path / "data")
    assert command("merge", "--dataset", data, "--generated", generated, "--output", tmp_path / "grown") == 0
    assert "train 8, val 1; 6 of them synthetic" in capsys.readouterr().out
    pairs = load_pairs(tmp_path / "grown", "train")
    assert pairs.stems[:3] == ["p0", "p1", "synthetic_a_0"]
    assert len(pairs) == 8
    assert (pairs.mask(0) == load_pairs(data, "train").mask(0)).all()
    assert pairs.attributes["weather"][:2] == ["rainy", "rainy"]
    rows = [json.loads(line) for line in (tmp_path / "grown/train/metadata.jsonl").read_text().splitlines()]
    assert [row["synthetic"] for row in rows] == [False] * 2 + [True] * 6
    notes = [json.loads(line) for line in (tmp_path / "grown/synthetic.jsonl").read_text().splitlines()]
    assert {row["stem"] for row in notes} == {row["stem"] for row in rows[2:]}
    assert all(row["seed"] and row["scheduler"] == "DDIMScheduler" for row in notes)
    record = json.loads((tmp_path / "grown/prepare.json").read_text())
    assert record["synthetic"]["count"] == 6
    assert record["synthetic"]["license"] == "cc-by-nc-4.0"
    assert record["splits"] == {"train": 8, "val": 1}


def test_card_of_a_grown_set_says_what_is_generated(generated, tmp_path):
    data = small_dataset(tmp_path / "data")
    command("merge", "--dataset", data, "--generated", generated, "--output", tmp_path / "grown")
    labels, record_file = check_dataset_folder(tmp_path / "grown")
    record = json.loads((tmp_path / "grown" / record_file).read_text())
    card = dataset_card(tmp_path / "grown", "alice/grown", None, labels, record, {"train": 8, "val": 1}, "")
    assert "6 pairs of the split train are synthetic (column `synthetic`), generated by `run`" in card
    assert "licence cc-by-nc-4.0" in card
    assert str(tmp_path) not in card


def test_photos_are_copied_byte_for_byte(generated, tmp_path):
    data = small_dataset(tmp_path / "data")
    command("merge", "--dataset", data, "--generated", generated, "--output", tmp_path / "grown")
    for name in ("train/images/p1.png", "val/images/p0.png"):
        assert (tmp_path / "grown" / name).read_bytes() == (data / name).read_bytes()
    synthetic = (tmp_path / "grown/train/images/synthetic_b_1.png").read_bytes()
    assert synthetic == (generated / "images/b_1.png").read_bytes()


def test_jpeg_images_are_merged_as_they_are(generated, tmp_path):
    data, run, masks, new = (
        small_dataset(tmp_path / "data"),
        generated.parent / "run",
        generated.parent / "masks",
        tmp_path / "new",
    )
    words = ("generate", "--model", run, "--masks", masks, "--output", new, "--num_inference_steps", 2)
    assert command(*words, "--image_format", "jpg") == 0
    assert command("merge", "--dataset", data, "--generated", new, "--output", tmp_path / "grown") == 0
    assert (tmp_path / "grown/train/images/synthetic_b_0.jpg").read_bytes() == (new / "images/b_0.jpg").read_bytes()
    pairs = load_pairs(tmp_path / "grown", "train")
    assert pairs.stems[2:] == ["synthetic_a_0", "synthetic_b_0", "synthetic_c_0"]
    assert pairs.photo(3).size == (16, 16)


def test_merging_again_into_the_same_folder_needs_overwrite(generated, tmp_path, capsys):
    data = small_dataset(tmp_path / "data")
    words = ("merge", "--dataset", data, "--generated", generated, "--output", tmp_path / "grown")
    assert command(*words) == 0
    assert command(*words) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert command(*words, "--overwrite") == 0


def test_a_grown_set_is_not_grown_again(generated, tmp_path, capsys):
    data = small_dataset(tmp_path / "data")
    assert command("merge", "--dataset", data, "--generated", generated, "--output", tmp_path / "grown") == 0
    words = ("merge", "--dataset", tmp_path / "grown", "--generated", generated, "--output", tmp_path / "more")
    assert command(*words) == 2
    assert "holds 6 synthetic pairs already" in capsys.readouterr().err
    assert command("grow", "--dataset", tmp_path / "grown", "--output", tmp_path / "more", "--dry_run") == 2
    assert "holds 6 synthetic pairs already" in capsys.readouterr().err
    record = json.loads((tmp_path / "grown/prepare.json").read_text())
    del record["synthetic"]  # of another tool
    (tmp_path / "grown/prepare.json").write_text(json.dumps(record))
    assert command(*words) == 2
    assert "holds a pair 'synthetic_a_0' already" in capsys.readouterr().err
    assert not (tmp_path / "more").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("images/c_1.png", "cannot be read as an image"),
        ("masks/c_1.png", "cannot be read as an image"),
        ("masks/b_0.png", "its mask 8 x 8"),
        ("images/a_1.png", "1 files of"),
    ],
)
def test_a_damaged_file_is_named_and_nothing_is_left(generated, tmp_path, capsys, name, message):
    shutil.copytree(generated, tmp_path / "new")
    path = tmp_path / "new" / name
    if "8 x 8" in message:
        Image.open(path).resize((8, 8), Image.Resampling.NEAREST).save(path)
    elif "files of" in message:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:60])
    data = small_dataset(tmp_path / "data")
    words = ("merge", "--dataset", data, "--generated", tmp_path / "new", "--output", tmp_path / "grown")
    assert command(*words) == 2
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "new"]


def test_images_that_do_not_fit_are_refused(generated, toy, tmp_path, capsys):
    output = ("--output", tmp_path / "grown")
    assert command("merge", "--dataset", toy, "--generated", generated, *output) == 2
    assert "other classes" in capsys.readouterr().err
    larger = small_dataset(tmp_path / "larger", size=24)
    assert command("merge", "--dataset", larger, "--generated", generated, *output) == 2
    assert "images of 16 x 16" in capsys.readouterr().err
    assert command("merge", "--dataset", larger, "--generated", tmp_path / "larger", *output) == 2
    assert "holds no generation.json" in capsys.readouterr().err
    assert command("merge", "--dataset", larger, "--generated", generated, "--split", "test", *output) == 2
    assert "has train, val" in capsys.readouterr().err
    assert not (tmp_path / "grown").exists()


# The whole loop ----------------------------------------------------------------------------------------------------


def grow_words(toy: Path, model: Path, output: Path) -> list[str]:
    small = ("architecture=segformer-mini", "max_train_steps=4")
    changes = [f"{stage}.{change}" for stage in ("segmenter", "study") for change in small]
    changes += ["generate.num_inference_steps=2", "filter.minimum_kept=0", "study.jobs=1"]
    words = [sys.executable, "-m", "semseg_diffusers.cli", "grow", "--dataset", toy, "--model", model]
    words += ["--output", output, "--num_masks", 10, "--num_images_per_mask", 4, "--seeds", 0, 1, "--amounts", 1]
    return [str(word) for word in [*words, "--device", "cpu", "--set", *changes]]


@pytest.mark.slow
def test_a_loop_killed_at_random_and_resumed_gives_the_same_report(toy, model, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def start(output: Path) -> subprocess.Popen:
        return subprocess.Popen(grow_words(toy, model, output), env=environment, start_new_session=True)

    start_time = time.monotonic()
    assert start(tmp_path / "straight").wait(timeout=600) == 0
    whole = time.monotonic() - start_time
    chance = random.Random(int(start_time))
    for _ in range(2):
        process = start(tmp_path / "killed")
        try:
            process.wait(timeout=chance.uniform(0.1, 0.9) * whole)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert start(tmp_path / "killed").wait(timeout=600) == 0
    reports = [(tmp_path / name / "index.html").read_text() for name in ("straight", "killed")]
    assert reports[0].replace(str(tmp_path / "straight"), "OUT") == reports[1].replace(str(tmp_path / "killed"), "OUT")
    assert "Still to be done" not in reports[0]
    assert "What it brings" in reports[0]
    assert len(load_pairs(tmp_path / "killed/merge", "train")) > 40


def test_an_upscaler_enlarges_what_the_given_model_generates(toy, model, tmp_path, capsys):
    words = ("grow", "--dataset", toy, "--output", tmp_path / "grown", "--dry_run", "--masks", "painted")
    assert command(*words, "--model", model, "--upscaler", "runs/upscaler") == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.split()[1] == "generate")
    assert "--upscaler runs/upscaler" in line
    assert command(*words, "--upscaler", "runs/upscaler") == 2
    assert "--upscaler enlarges images of a --model" in capsys.readouterr().err
