"""`model_card.md` at the root is the filled card of the CamVid network."""

import re
from pathlib import Path

from semseg_diffusers.hub.cards import metadata


ROOT = Path(__file__).resolve().parents[2]
CHECKPOINT = "checkpoints/camvid128"


def test_the_card_is_that_of_the_checkpoint_with_links_from_the_root():
    card = (ROOT / CHECKPOINT / "README.md").read_text(encoding="utf-8")
    expected = re.sub(r"\]\((?=samples|extremes|results)", f"]({CHECKPOINT}/", card)
    assert (ROOT / "model_card.md").read_text(encoding="utf-8") == expected, (
        f"model_card.md is out of date: copy {CHECKPOINT}/README.md, with its links below {CHECKPOINT}/ (make card)"
    )


def test_the_card_has_licence_scores_and_files():
    text = (ROOT / "model_card.md").read_text(encoding="utf-8")
    card = metadata(text)
    assert card["license"] == "cc-by-nc-4.0"
    names = {metric["type"] for metric in card["model-index"][0]["results"][0]["metrics"]}
    assert {"mean_iou", "frechet_distance"} <= names
    for target in re.findall(r"\]\((?!http|#)([^)#]+)", text):
        assert (ROOT / target).exists(), target
