"""docs/generating.md: its commands run as printed."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler

from semseg_diffusers import LabelSet, MaskGuidedDDPMPipeline, MaskGuidedUNet2DModel, cli
from semseg_diffusers.data.loading import load_pairs
from semseg_diffusers.data.toy import write_toy_dataset
from semseg_diffusers.generation.output_folder import read_metadata


ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "generating.md").read_text(encoding="utf-8")
SHELL = [
    line
    for block in re.findall(r"^```bash\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
]
ATTRIBUTES = ("weather", "timeofday")


def save_model(folder: Path, labels: LabelSet, attributes=None) -> None:
    """A tiny untrained model for 96 x 96 scenes."""
    torch.manual_seed(0)
    unet = MaskGuidedUNet2DModel(
        sample_size=96,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        attributes=attributes,
        **labels.to_config(),
    )
    MaskGuidedDDPMPipeline(unet, DDIMScheduler()).save_pretrained(folder)


@pytest.mark.slow
def test_commands_of_the_page_run_as_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("camvid128", "bdd128"):
        write_toy_dataset(tmp_path / "data" / name, num_train=80, num_val=2, size=(96, 96), seed=0)
    labels = LabelSet.from_json("data/camvid128/labels.json")
    told = load_pairs("data/bdd128", "val").attributes
    known = {name: sorted({"clear", "rainy", "night", *filter(None, told[name])}) for name in ATTRIBUTES}
    for name, attributes in (("camvid128", None), ("small", None), ("bdd128", known)):
        save_model(tmp_path / "runs" / name, labels, attributes)
    for line in (line for line in SHELL if line.startswith("semseg-diffusers")):
        words = shlex.split(line)[1:]
        if words[0] == "generate":
            words += ["--num_inference_steps", "2", "--device", "cpu"]
        if words[0] == "enrich":
            words[words.index("--num_masks") + 1] = "2"
        assert cli.main(words) == 0, f"{line}\n{capsys.readouterr().err[-2000:]}"
    assert [row["weather"] or None for row in read_metadata("night")] == [value or None for value in told["weather"]]
    assert {row["timeofday"] for row in read_metadata("night")} == {"night"}
    assert len(read_metadata("weathers")) == 2 * 4
    assert all("near_copy" in row for row in read_metadata("new"))
    assert {Path(row["source_photo"]).parent.parent.name for row in read_metadata("enriched_photos")} == {"train"}
