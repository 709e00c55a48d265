"""Captions: colours by what people call them, texts about things and classes, and the dataset that holds them."""

import json

import numpy as np
import pytest
from PIL import Image

from semseg_diffusers import LabelSet, cli
from semseg_diffusers.captions.caption import measure_colors, word_image, word_regions
from semseg_diffusers.captions.colors import NAMES, balance_white, name_colors, region_color, rgb_to_lab
from semseg_diffusers.data.dataset import load_pairs
from semseg_diffusers.data.dataset_format import finish_dataset, make_split, save_pair
from semseg_diffusers.masks.editing.objects import Street
from semseg_diffusers.toy.scenes import draw_scene


LABELS = LabelSet.from_preset("bdd100k")
CAR, ROAD, SKY, PERSON = (LABELS.names.index(name) for name in ("car", "road", "sky", "person"))
SIZE = (32, 64)


def street(light: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """A blue sky, a grey road, a red car, a dark blue one to the right of it, and a tiny person."""
    image, ids = np.full((*SIZE, 3), 120, dtype=np.uint8), np.full(SIZE, ROAD, dtype=np.uint8)
    for rows, columns, class_id, color in (
        (slice(0, 12), slice(0, 64), SKY, (110, 160, 230)),
        (slice(16, 28), slice(34, 54), CAR, (20, 25, 90)),
        (slice(18, 28), slice(4, 24), CAR, (170, 30, 35)),
        (slice(20, 24), slice(60, 62), PERSON, (20, 200, 20)),
    ):
        ids[rows, columns], image[rows, columns] = class_id, color
    image[18:22, 10:18] = (30, 35, 40)  # windows
    return (image * light).astype(np.uint8), ids


def described(**options) -> list[dict]:
    image, ids = street()
    return word_regions(rgb_to_lab(image), ids, Street.of(LABELS), np.random.default_rng(0), **options)


@pytest.mark.parametrize(
    ("rgb", "name"),
    [
        ((0, 0, 0), "black"), ((30, 30, 34), "black"), ((128, 128, 128), "grey"), ((95, 98, 104), "grey"),
        ((250, 250, 250), "white"), ((205, 210, 208), "white"), ((210, 20, 30), "red"), ((120, 35, 38), "red"),
        ((250, 120, 20), "orange"), ((250, 220, 30), "yellow"), ((30, 150, 40), "green"), ((40, 60, 35), "green"),
        ((30, 60, 200), "blue"), ((20, 30, 80), "blue"), ((130, 180, 240), "blue"), ((110, 40, 140), "purple"),
        ((250, 140, 190), "pink"), ((100, 60, 30), "brown"), ((210, 190, 160), "beige"), ((130, 20, 60), "red"),
        ((10, 150, 140), "turquoise"), ((0, 230, 230), "turquoise"), ((221, 253, 253), "blue"),
        ((205, 253, 254), "blue"), ((150, 210, 250), "blue"), ((170, 255, 250), "turquoise"),
    ],
)  # fmt: skip
def test_colours_have_the_names_that_people_give_them(rgb, name):
    assert NAMES[name_colors(rgb_to_lab(np.array(rgb, dtype=np.uint8)))] == name


def test_lightness_and_hue_are_those_of_the_standard():
    lab = rgb_to_lab(np.array([[255, 255, 255], [255, 0, 0], [0, 0, 255], [119, 119, 119]], dtype=np.uint8))
    expected = [[100, 0, 0], [53.24, 80.09, 67.2], [32.3, 79.19, -107.86], [50.03, 0, 0]]
    np.testing.assert_allclose(lab, expected, atol=0.05)


def test_a_colour_prevails_or_nothing_is_said():
    red, green, white = ([200, 20, 30], [30, 150, 40], [250, 250, 250])
    assert region_color(rgb_to_lab(np.array([red, red, white, [10, 10, 10]], dtype=np.uint8))) == ("red", "red")
    assert region_color(rgb_to_lab(np.array([red, green, white], dtype=np.uint8))) is None
    assert region_color(rgb_to_lab(np.array([[140, 190, 250]], dtype=np.uint8))) == ("blue", "light blue")


def test_windows_and_tyres_do_not_give_a_vehicle_its_colour():
    red, black = [170, 30, 35], [15, 15, 18]
    pixels = rgb_to_lab(np.array(4 * [red] + 6 * [black], dtype=np.uint8))
    assert region_color(pixels) == ("black", "black")
    assert region_color(pixels, is_vehicle=True) == ("red", "red")
    assert region_color(pixels[3:], is_vehicle=True) == ("black", "black")


def cast_street(cast: tuple[float, float, float]) -> tuple[np.ndarray, np.ndarray]:
    """The street with a silver car in place of the blue one, in a light of this colour, with the sky as it is."""
    image, ids = street()
    image[16:28, 34:54] = (121, 124, 126)
    balanced = np.where((ids == SKY)[..., None], image, image * np.array(cast))
    return balanced.astype(np.uint8), ids


def test_the_cast_of_the_light_does_not_change_names_and_the_sky_keeps_its_own():
    image, ids = cast_street((0.89, 0.95, 1.07))
    lab = {balance: measure_colors(image, ids, Street.of(LABELS), balance) for balance in (True, False)}
    right_car, left_car = ((ids == CAR) & (np.arange(SIZE[1]) // 32 == half) for half in (1, 0))
    assert region_color(lab[False][right_car], True) == ("blue", "blue")
    assert region_color(lab[True][right_car], True) == ("grey", "grey")
    assert region_color(lab[True][left_car], True) == ("red", "red")
    np.testing.assert_array_equal(lab[True][ids == SKY], lab[False][ids == SKY])
    np.testing.assert_array_equal(lab[True][..., 0], lab[False][..., 0])


def test_a_balance_is_bounded_and_leaves_coloured_light_and_images_without_ground_alone():
    lab = rgb_to_lab(street()[0])
    ground = street()[1] == ROAD
    assert balance_white(lab, np.zeros_like(ground)) is lab
    for cast, shift in (((3, -4), 5), ((9, 3), 6)):  # a*, b*
        found = balance_white(lab + np.array([0, *cast]), ground) - lab - np.array([0, *cast])
        np.testing.assert_allclose(np.linalg.norm(found, axis=-1).max(), shift, atol=0.05)
    night = lab + np.array([0, 12, 24])  # sodium lamps
    assert balance_white(night, ground) is night


def toy_cars(image: np.ndarray, ids: np.ndarray, white_balance: bool) -> dict[int, str]:
    """Return the colours of the cars of a scene by their numbers."""
    street = Street.of(LABELS)
    lab = measure_colors(image, ids, street, white_balance)
    found = word_regions(lab, ids, street, np.random.default_rng(0))
    return {each["thing"]: each["color"] for each in found if each["class"] == "car"}


def test_the_red_and_blue_cars_of_toy_scenes_keep_their_names():
    names = []
    for seed in range(40):
        image, ids, _ = draw_scene(seed)
        before, after = (toy_cars(np.asarray(image), ids, balance) for balance in (False, True))
        names += [(color, after.get(number)) for number, color in before.items() if color in ("red", "blue")]
    assert len(names) >= 8
    assert all(old == new for old, new in names)


def test_things_are_described_one_by_one_from_left_to_right_and_classes_as_a_whole():
    found = {(each["class"], each["thing"]): each for each in described(num_wordings=7)}
    assert {key: each["color"] for key, each in found.items()} == {
        ("road", -1): "grey",
        ("sky", -1): "blue",
        ("car", 0): "red",
        ("car", 1): "blue",
    }  # the person is too small
    texts = found["car", 1]["texts"]
    assert len(set(texts)) == 7
    assert all("blue" in text for text in texts)
    assert sum("car" not in text for text in texts) == 2  # the mask says what the thing is
    assert {"dark blue" in text for text in texts} == {True, False}
    assert ("person", 0) in {(each["class"], each["thing"]) for each in described(min_area=8)}


def test_an_image_is_described_by_attributes_light_and_sky():
    attributes = {"weather": "rainy", "timeofday": "undefined"}

    def texts(light: float, seed: int = 0) -> list[str]:
        image, ids = street(light)
        return word_image(rgb_to_lab(image), ids, LABELS, attributes, np.random.default_rng(seed))

    for text in texts(1.0):
        assert "rainy" in text
        assert "blue sky" in text
        assert "undefined" not in text
    assert all("dark" in text.replace("dark blue", "") for text in texts(0.3))
    assert texts(1.0) == texts(1.0)
    assert len({tuple(texts(1.0, seed)) for seed in range(9)}) > 1


@pytest.fixture
def dataset(tmp_path):
    return write_streets(tmp_path)


def write_streets(tmp_path, weather_of_val: str | None = "rainy"):
    folder, rows = tmp_path / "data", {}
    for split, lights in (("train", (1.0, 0.97)), ("val", (0.94,))):
        (folder / split).mkdir(parents=True)
        path = make_split(folder, split)
        rows[split] = []
        for light in lights:
            image, ids = street(light)
            pair = save_pair(path, f"street{len(rows[split])}", Image.fromarray(image), ids, LABELS)
            rows[split].append({**pair, "weather": "rainy" if split == "train" else weather_of_val})
    finish_dataset(folder, rows, LABELS, {"format": "folder"})
    return folder


def test_the_command_writes_a_dataset_that_holds_the_texts(dataset, tmp_path, capsys):
    output = tmp_path / "texts"
    words = ["caption", "--dataset", str(dataset), "--output", str(output), "--attributes", "weather"]
    assert cli.main([*words, "--num_wordings", "2"]) == 0
    assert capsys.readouterr().out == f"{output}: 3 images, texts about 12 regions of them\n"
    before, after = load_pairs(dataset), load_pairs(output)
    assert before.digest == after.digest
    assert after.attributes == before.attributes
    rows = [json.loads(line) for line in (output / "train" / "metadata.jsonl").read_text().splitlines()]
    assert all("rainy" in text for row in rows for text in row["captions"])
    car = next(each for each in rows[0]["region_captions"] if each["class"] == "car")
    assert (car["thing"], len(car["texts"])) == (0, 2)
    assert rows[0]["region_captions"] != rows[1]["region_captions"]  # other wordings
    record = json.loads((output / "caption.json").read_text())
    assert record["colors"]["car"] == {"red": 3, "blue": 3}
    assert cli.main(["check", "--dataset", str(output)]) == 0
    capsys.readouterr()
    assert cli.main(words) == 2
    assert "is not empty. Name another folder" in capsys.readouterr().err


def test_a_split_without_values_of_an_attribute_is_described_without(tmp_path):
    dataset, output = write_streets(tmp_path, weather_of_val=None), tmp_path / "texts"
    words = ["caption", "--dataset", str(dataset), "--output", str(output), "--attributes", "weather"]
    assert cli.main(words) == 0
    for split, said in (("train", True), ("val", False)):
        assert ("rainy" in (output / split / "metadata.jsonl").read_text().partition('"captions"')[2]) == said


def test_only_the_classes_that_are_named_are_described(dataset, tmp_path, capsys):
    words = ["caption", "--dataset", str(dataset), "--output", str(tmp_path / "texts")]
    assert cli.main([*words, "--classes", "car"]) == 0
    assert json.loads((tmp_path / "texts" / "caption.json").read_text())["colors"] == {"car": {"red": 3, "blue": 3}}
    capsys.readouterr()
    assert cli.main([*words[:-1], str(tmp_path / "other"), "--classes", "car", "carr"]) == 2
    assert "has no class 'carr', which --classes names; it has" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def known_regions(folder, change=lambda regions: regions):
    """Give the rows of a dataset a column of known colours: the first car is mostly green, whatever it looks like."""
    for path in folder.glob("*/metadata.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        regions = [{"class": "car", "thing": 0, "colors": [[20, 130, 40, 90], [200, 200, 200, 30]]}]
        path.write_text("".join(json.dumps({**row, "paints": change(regions)}) + "\n" for row in rows))


def test_known_colours_are_named_in_place_of_measured_ones_of_their_class(dataset, tmp_path, capsys):
    assert cli.main(["caption", "--dataset", str(dataset), "--output", str(tmp_path / "measured")]) == 0
    measured = json.loads((tmp_path / "measured" / "caption.json").read_text())["colors"]
    known_regions(dataset)
    words = ["caption", "--dataset", str(dataset), "--output", str(tmp_path / "texts"), "--colors_column", "paints"]
    assert cli.main(words) == 0
    assert json.loads((tmp_path / "texts" / "caption.json").read_text())["colors"] == {**measured, "car": {"green": 3}}
    rows = [json.loads(line) for line in (tmp_path / "texts" / "train" / "metadata.jsonl").read_text().splitlines()]
    for row in rows:
        (region,) = (each for each in row["region_captions"] if each["class"] == "car")
        assert region["thing"] == 0  # nothing is known of the other car
        assert all("green" in text for text in region["texts"])
    capsys.readouterr()


def test_known_colours_of_a_class_that_the_dataset_lacks_are_refused(dataset, tmp_path, capsys):
    known_regions(dataset, lambda regions: [{**regions[0], "class": "carr"}])
    words = ["caption", "--dataset", str(dataset), "--output", str(tmp_path / "texts"), "--colors_column", "paints"]
    assert cli.main(words) == 2
    assert "has no class 'carr', which --colors_column paints names; it has" in capsys.readouterr().err
    assert not (tmp_path / "texts").exists()


@pytest.mark.parametrize(
    ("regions", "message"),
    [
        ([{"class": "car", "thing": 0, "colors": [[20, 300, 40, 9]]}], "colours of 0 to 255"),
        ([{"class": "car", "thing": 0, "colors": [[20, 30, 40]]}], "[[red, green, blue, pixels], ...]"),
        ([{"thing": 0, "colors": [[20, 30, 40, 9]]}], "expected a list of"),
    ],
)
def test_known_colours_that_are_none_are_refused_with_the_image(dataset, tmp_path, capsys, regions, message):
    known_regions(dataset, lambda _: regions)
    words = ["caption", "--dataset", str(dataset), "--output", str(tmp_path / "texts"), "--colors_column", "paints"]
    assert cli.main(words) == 2
    err = capsys.readouterr().err
    assert message in err
    assert "--colors_column: 'street0' of" in err
    assert not (tmp_path / "texts").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--colors_column", "paints"], "has no column of lists 'paints' (--colors_column)"),
        (["--attributes", "season"], "has no column of text 'season' for an attribute; it has weather"),
        (["--num_wordings", "0"], "num_wordings"),
        (["--device", "cpu"], "--device is that of a captioner: give --captioner as well, or neither"),
        (["--captioner_prompt", "a photo of"], "give --captioner as well, or neither"),
        (["--captioner", "model", "--attributes", "weather"], "leave out --attributes or --captioner"),
        (["--captioner", "/nowhere/model"], "there is no folder '/nowhere/model', and it is not a model id"),
        (["--dataset", "nowhere"], "'nowhere' is no prepared dataset; expected a folder that `prepare`"),
    ],
)
def test_what_cannot_be_described_is_refused_in_one_line(dataset, tmp_path, capsys, changes, message):
    try:
        code = cli.main(["caption", "--dataset", str(dataset), "--output", str(tmp_path / "texts"), *changes])
    except SystemExit as err:
        code = err.code
    assert code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "texts").exists()
