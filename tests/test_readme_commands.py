"""The README's commands of "Publish" and "Scale out", run as printed; options that make them short come after them."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from training_runs import TINY, status, tiny_settings, train_here

from semseg_diffusers.data.toy import write_toy_dataset


pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SHORT_TRAINING = " ".join(
    f"--{name} {' '.join(map(str, value)) if isinstance(value, tuple) else value}" for name, value in TINY.items()
)
SHORTER = {
    "train_accelerate.py": SHORT_TRAINING,
    "semseg-diffusers train": SHORT_TRAINING,
    "semseg_diffusers.generation": "--num_inference_steps 2",
    "semseg-diffusers generate": "--num_inference_steps 2",
    "semseg-diffusers segmenter": "--architecture segformer-mini --max_train_steps 2 --train_batch_size 2",
}


def commands_of(section: str) -> list[str]:
    """The lines of the shell blocks of one section."""
    text = README.split(f"\n## {section}\n")[1].split("\n## ")[0]
    blocks = re.findall(r"^```bash\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """A checkout's scripts with a small data set and a finished run where the README has its own."""
    folder = tmp_path_factory.mktemp("readme")
    for name in ("configs", "train_accelerate.py"):
        (folder / name).symlink_to(ROOT / name)
    write_toy_dataset(folder / "data" / "camvid128", num_train=6, num_val=2, size=(32, 32), seed=0)
    train_here(tiny_settings(folder / "data" / "camvid128", folder / "runs" / "camvid128"))
    return folder


def run_line(line: str, folder: Path, **environment: str) -> str:
    """Run one printed line in a shell; returns what it wrote."""
    more = " ".join(options for start, options in SHORTER.items() if start in line)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    variables = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run(
        f"{line} {more}",
        shell=True,
        cwd=folder,
        env=variables,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout + done.stderr


def test_publish_section_runs_as_printed(prepared, hub, tmp_path):
    to_hub = hub.environment(tmp_path / "home")
    folder = shutil.copytree(prepared, tmp_path / "checkout", symlinks=True)
    run_line("semseg-diffusers generate --model runs/camvid128 --masks data/camvid128/val/masks --output new", folder)
    for line in commands_of("Your own data, in five commands")[3:]:
        run_line(line, folder)
    shutil.rmtree(folder / "new")
    for line in commands_of("Publish"):
        run_line(line, folder, **to_hub)
    assert {"unet/unet_mask_guided.py", "pipeline.py"} <= hub.model("alice/camvid128").files().keys()
    assert "mean IoU" in (folder / "runs" / "camvid128" / "README.md").read_text()
    assert hub.dataset("alice/camvid128-pairs").private
    assert status(folder / "runs" / "again")["status"] == "finished"
    assert len(list((folder / "new" / "images").glob("*.png"))) == 2

    # the training that pushes: its data comes from the Hub, its model goes there
    line = "semseg-diffusers train --dataset alice/camvid128-pairs --output_dir runs/pushed --push_to_hub"
    output = run_line(f"{line} --hub_private_repo", folder, **to_hub)
    assert "pushed http" in output
    model = hub.model("alice/pushed")
    assert model.private
    card = model.files()["README.md"].data.decode()
    assert "6 pairs of `alice/camvid128-pairs`" in card
    assert "license: apache-2.0" in card  # of toy scenes, as the data set's own record says


def test_training_that_is_to_be_pushed_asks_the_hub_first(prepared, hub, tmp_path):
    folder = shutil.copytree(prepared, tmp_path / "checkout", symlinks=True)
    line = "semseg-diffusers train --dataset data/camvid128 --output_dir runs/refused --push_to_hub"
    with pytest.raises(AssertionError, match="the Hub refuses your token"):
        run_line(line, folder, **hub.environment(tmp_path / "home", token="hf_wrong"))
    assert not (folder / "runs" / "refused").exists()


def test_scale_out_section_runs_as_printed(prepared, tmp_path):
    folder = shutil.copytree(prepared, tmp_path / "checkout", symlinks=True)
    shutil.rmtree(folder / "runs")
    outputs = [run_line(line, folder) for line in commands_of("Scale out")]
    assert "2 process(es) on cpu, 4 samples a step" in outputs[0]
    assert status(folder / "runs" / "camvid128")["status"] == "finished"
    rows = [json.loads(line) for line in (folder / "new" / "metadata.jsonl").read_text().splitlines()]
    assert len(rows) == len(list((folder / "new" / "images").glob("*.png"))) == 2
