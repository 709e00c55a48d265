"""docs/filtering.md: its commands run as printed, its columns are those that the filter writes."""

import re
import shlex
from pathlib import Path

import pytest
from test_generating_docs import save_model

from semseg_diffusers import LabelSet, cli
from semseg_diffusers.data.toy import write_toy_dataset
from semseg_diffusers.generation.output_folder import read_metadata


ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "filtering.md").read_text(encoding="utf-8")
SHELL = [
    line
    for block in re.findall(r"^```bash\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
]


def test_columns_of_the_page_are_those_that_the_filter_writes():
    from semseg_diffusers.evaluation.filtering.output import COLUMNS
    from semseg_diffusers.evaluation.filtering.rules import REASONS

    assert len(SHELL) == 5
    told = re.findall(r"^\| (`.*?`) \|", PAGE, flags=re.MULTILINE)
    assert re.findall(r"`(\w+)`", ", ".join(told)) == [*COLUMNS, "reason"]
    assert all(f"`{reason}`" in PAGE for reason in REASONS)


@pytest.mark.slow
def test_commands_of_the_page_run_as_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_toy_dataset(tmp_path / "data" / "camvid128", num_train=12, num_val=2, size=(96, 96), seed=0)
    save_model(tmp_path / "runs" / "camvid128", LabelSet.from_json("data/camvid128/labels.json"))
    generate = "generate --model runs/camvid128 --masks data/camvid128/val/masks --output new --num_images_per_mask 2"
    assert cli.main([*shlex.split(generate), "--num_inference_steps", "2", "--device", "cpu"]) == 0
    for line in SHELL:
        words = [*shlex.split(line)[1:], "--device", "cpu"]
        if words[0] == "segmenter":
            words += ["--max_train_steps", "2", "--train_batch_size", "2"]
        if words[0] == "filter":  # nothing that an untrained model draws would stay
            words += ["--minimum_kept", "0"]
        assert cli.main(words) == 0, f"{line}\n{capsys.readouterr().err[-2000:]}"
    assert len(read_metadata("filtered")) == 4
    assert 2 <= len(read_metadata("resampled")) <= 4
