"""Files of strangers: names in metadata that leave their folder are not opened, JSON without end is one line."""

import json
import shutil

import pytest

from semseg_diffusers import cli
from semseg_diffusers.data.check.check import check_prepared
from semseg_diffusers.data.dataset import load_pairs
from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.generation.output_folder import read_metadata
from semseg_diffusers.utils.files import is_outside, read_json, read_json_lines


DEEP = "[" * 100_000


@pytest.mark.parametrize("name", ["/etc/passwd", "../a.png", "a/../../b.png", "..", "", None, 5, "a\0.png"])
def test_a_name_outside_of_its_folder_is_recognised(name):
    assert is_outside(name)


@pytest.mark.parametrize("name", ["a.png", "images/a.png", "images/../a.png", "..a.png", "images/..a.png"])
def test_a_name_inside_of_its_folder_is_recognised(name):
    assert not is_outside(name)


@pytest.mark.parametrize("name", ["../../secret.png", "{folder}/secret.png"])
def test_check_reports_a_file_outside_of_the_dataset_and_does_not_open_it(toy, tmp_path, name, monkeypatch):
    folder = tmp_path / "data"
    shutil.copytree(toy, folder)
    (tmp_path / "secret.png").write_bytes(b"a secret")
    file = folder / "train" / "metadata.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[1]["mask_file_name"] = name.format(folder=tmp_path)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = str([finding for finding in check_prepared(folder).findings if finding.kind == "metadata"])
    assert "metadata.jsonl:2 (" in text
    assert "is no file in its folder" in text
    assert "secret" not in str([f for f in check_prepared(folder).findings if f.kind != "metadata"])
    with pytest.raises(ValueError, match=r"names the file '.*secret.png'; expected files in its folder"):
        load_pairs(folder, "train")


def test_metadata_of_generated_images_that_leave_the_folder_are_refused(tmp_path):
    row = {"image_file_name": "images/a.png", "mask_file_name": "../../a.png"}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(row))
    with pytest.raises(ValueError, match=r"names the file '../../a.png'; expected files in its folder"):
        read_metadata(tmp_path)


@pytest.mark.parametrize("read", [read_json, read_json_lines, LabelSet.from_json])
def test_json_without_end_is_refused_in_one_line(read, tmp_path):
    (tmp_path / "labels.json").write_text(DEEP)
    with pytest.raises(ValueError, match="is not valid JSON.*: nested too deeply") as refused:
        read(tmp_path / "labels.json")
    assert "\n" not in str(refused.value)


def test_check_of_json_without_end_is_one_line_without_traceback(toy, tmp_path, capsys):
    folder = tmp_path / "data"
    shutil.copytree(toy, folder)
    (folder / "train" / "metadata.jsonl").write_text(DEEP)
    assert cli.main(["check", "--dataset", str(folder)]) == 1
    assert "metadata.jsonl:1" in capsys.readouterr().out
    (folder / "labels.json").write_text(DEEP)
    assert cli.main(["check", "--dataset", str(folder)]) in (1, 2)
    printed = capsys.readouterr()
    assert "nested too deeply" in printed.out + printed.err
    assert "Traceback" not in printed.err
