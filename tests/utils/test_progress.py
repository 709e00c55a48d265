"""Progress bars in log files."""

import sys
import time

from semseg_diffusers.utils import progress


def test_a_bar_in_a_log_file_prints_few_lines_without_carriage_returns(capsys, monkeypatch):
    monkeypatch.setattr(progress, "LOG_INTERVAL", 0.1)
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)  # another test may have imported it
    for _ in progress.progress_bar(range(300), desc="steps"):
        time.sleep(0.001)
    lines = capsys.readouterr().err.splitlines(keepends=True)
    assert 3 <= len(lines) <= 12
    assert all(line.startswith("steps:") and line.endswith("\n") and "\r" not in line for line in lines)
    assert "300/300" in lines[-1]


def test_a_bar_that_updates_in_blocks_shows_the_count_and_can_be_disabled(capsys):
    with progress.progress_bar(total=10, disable=True) as bar:
        bar.update(10)
    assert capsys.readouterr().err == ""
    with progress.progress_bar(total=10) as bar:
        bar.update(4)
    assert "4/10" in capsys.readouterr().err
