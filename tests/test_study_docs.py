"""docs/study.md: its studies run as printed, and every arm is on it."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
from study_place import write_scenes_as_generated

from semseg_diffusers import cli
from semseg_diffusers.data.toy import write_toy_dataset
from semseg_diffusers.evaluation.study.settings import ARMS


ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "study.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```bash\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
LINES = [line for block in BLOCKS for line in block.splitlines()]


def test_every_arm_is_on_the_page():
    for arm in ARMS:
        assert f"`{arm}`" in PAGE


@pytest.mark.slow
def test_studies_of_the_page_run_as_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_toy_dataset("data/camvid128", num_train=2, num_val=2, size=(32, 32), seed=0)
    write_scenes_as_generated(Path("new"), 4, 32)
    shutil.copytree("new", "filtered")
    studies = [shlex.split(line)[1:] for line in LINES if line.startswith("semseg-diffusers study")]
    assert len(studies) == 3
    for words in studies:
        shorter = ["--architecture", "segformer-mini", "--max_train_steps", "2", "--device", "cpu", "--jobs", "1"]
        assert cli.main([*words, *shorter]) == 0, capsys.readouterr().err[-2000:]
        assert "over real photos: " in capsys.readouterr().out
