"""docs/converting.md: its commands run as printed, on tiny checkpoints under the names that it uses."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from golden_weights import golden_values
from published_checkpoints import konz_folder, lightning, paper_weights, sdm_weights

from semseg_diffusers import LabelSet, MaskGuidedDDPMPipeline, cli


ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "converting.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```bash\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.splitlines()]
# What makes a command fit a tiny checkpoint, or short; it comes after the printed options.
SHORTER = {
    "--from sdm": "--sample_size 32 --num_head_channels 16",
    " generate ": "--num_inference_steps 1 --height 32 --width 32 --device cpu",
}


@pytest.fixture
def published(tmp_path, monkeypatch):
    """The files that the page names, in the folder where the commands run."""
    monkeypatch.chdir(tmp_path)
    labels = LabelSet.from_preset("paper")
    torch.save(paper_weights(), "ema_model_epoch_550.ckpt")
    torch.save(lightning(paper_weights(), paper_weights())["state_dict"], "weights.ckpt")
    torch.save(sdm_weights(), "ema_0.9999_best.pt")
    konz_folder(Path("ddpm-breast_mri-256-segguided"), channels=1)
    Path("colormap.json").write_text(json.dumps(dict(zip(labels.names, map(list, labels.colors), strict=True))))
    Path("classes.json").write_text(json.dumps({f"c{i}": [i, i, 0] for i in range(12)}))
    Path("masks").mkdir()
    labels.decode(golden_values("paper_unet_tiny")["label_map"][0]).save("masks/a.png")
    return tmp_path


def test_every_command_runs_as_printed(published):
    assert len(COMMANDS) == 5
    for line in COMMANDS:
        more = " ".join(options for part, options in SHORTER.items() if part in line)
        assert cli.main(shlex.split(f"{line} {more}")[1:]) == 0, line
    assert {path.name for path in Path("models").iterdir()} == {"paper", "paper-raw", "sdm", "breast"}
    assert len(list(Path("drawn/images").iterdir())) == 1
    assert LabelSet.from_config(MaskGuidedDDPMPipeline.from_pretrained("models/sdm").unet.config).names[0] == "c0"
    grey = MaskGuidedDDPMPipeline.from_pretrained("models/breast")
    image = grey(torch.zeros(16, 16, dtype=torch.uint8), num_inference_steps=1, guidance_scale=1).images[0]
    assert image.mode == "L"


def test_recipe_for_a_trusted_file_makes_one_that_converts(published):
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
    content = {**lightning(paper_weights(), paper_weights()), "hyper_parameters": {"path": Path("data")}}
    torch.save(content, "model_epoch_550.ckpt")
    words = ["convert", "--from", "paper", "--output", "models/again"]
    assert cli.main([*words, "model_epoch_550.ckpt"]) == 2
    exec(code, {})
    assert cli.main([*words, "weights.ckpt"]) == 0


def test_formats_of_the_table_are_those_of_the_command():
    from semseg_diffusers.converters.command import SOURCES

    assert re.findall(r"^\| `([a-z][a-z-]+)` \|", PAGE, flags=re.MULTILINE) == list(SOURCES)
