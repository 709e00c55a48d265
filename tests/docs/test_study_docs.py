"""docs/how_to/study.md: every arm is on it."""

from pathlib import Path

from semseg_diffusers.evaluation.settings import ARMS


ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "how_to" / "study.md").read_text(encoding="utf-8")


def test_every_arm_is_on_the_page():
    for arm in ARMS:
        assert f"`{arm}`" in PAGE
