"""Text files of other programs are read, or refused by name."""

import json
import os

import pytest
import torch
from safetensors.torch import save_file

from semseg_diffusers.generation.inputs import read_attribute_table
from semseg_diffusers.masks.editing.edit import read_operations
from semseg_diffusers.utils.files import follow_umask, read_json, read_json_lines, read_text, write_json
from semseg_diffusers.utils.settings import read_yaml


def test_a_byte_order_mark_is_no_content(tmp_path):
    (tmp_path / "a.json").write_text('{"a": "é"}', encoding="utf-8-sig")
    (tmp_path / "a.jsonl").write_text('{"stem": "a\u2028b", "weather": "rainy"}\n\n', encoding="utf-8-sig")
    (tmp_path / "a.csv").write_text("stem,weather\na,rainy\n", encoding="utf-8-sig")
    (tmp_path / "a.yaml").write_text("seed: 3\n", encoding="utf-8-sig")
    (tmp_path / "b.yaml").write_text("- remove: {class: car}\n", encoding="utf-8-sig")
    assert read_json(tmp_path / "a.json") == {"a": "é"}
    assert read_json_lines(tmp_path / "a.jsonl") == [{"stem": "a\u2028b", "weather": "rainy"}]
    assert read_attribute_table(tmp_path / "a.csv", {"weather": ["rainy"]}) == {"a": {"stem": "a", "weather": "rainy"}}
    assert read_attribute_table(tmp_path / "a.jsonl", {"weather": ["rainy"]})["a\u2028b"]["weather"] == "rainy"
    assert read_yaml(tmp_path / "a.yaml") == {"seed": 3}
    assert [str(operation) for operation in read_operations(tmp_path / "b.yaml")] == ["remove class=car"]


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_other_encodings_are_refused_by_the_name_of_the_file(encoding, tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"a": "é"}, ensure_ascii=False), encoding=encoding)
    for read in (read_text, read_json, read_json_lines):
        with pytest.raises(ValueError, match=r"'.*a.json' is (not )?in UTF-(8|16).* Save it again as UTF-8"):
            read(tmp_path / "a.json")


@pytest.mark.parametrize("stem", ["n" * 250, "é" * 125, "東" * 83])
def test_the_longest_names_are_written(stem, tmp_path):
    write_json(tmp_path / f"{stem}.json", {"a": 1})
    assert read_json(tmp_path / f"{stem}.json") == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == [f"{stem}.json"]


@pytest.mark.parametrize(("mask", "expected"), [(0o022, 0o644), (0o007, 0o660), (0o077, 0o600)])
def test_weights_get_the_permissions_of_other_files(tmp_path, mask, expected):
    (tmp_path / "unet").mkdir()
    save_file({"a": torch.zeros(1)}, tmp_path / "unet" / "model.safetensors")
    before = os.umask(mask)
    try:
        follow_umask(tmp_path)
        assert os.umask(mask) == mask
    finally:
        os.umask(before)
    assert (tmp_path / "unet" / "model.safetensors").stat().st_mode & 0o777 == expected
