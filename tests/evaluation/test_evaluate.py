"""`evaluate`: figures between floor and ceiling, controls that change them as expected, errors before any work."""

import importlib.util
import json
import re
import shutil

import numpy as np
import pytest
import torch
from helpers.evaluation_place import LABELS, SIZE, Place
from PIL import Image, ImageFilter

from semseg_diffusers.data.dataset import load_pairs
from semseg_diffusers.evaluation.evaluate import evaluate
from semseg_diffusers.evaluation.evaluation_page import RIGHT, UNKNOWN, collect_images
from semseg_diffusers.evaluation.inputs import ImageSet, generated_images
from semseg_diffusers.evaluation.inputs import real_images as photo_set
from semseg_diffusers.evaluation.metrics import PredictedImages, score_agreement
from semseg_diffusers.evaluation.results import paper_figures
from semseg_diffusers.evaluation.settings import EvaluationSettings


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return Place(tmp_path_factory.mktemp("evaluation"))


@pytest.fixture(scope="module")
def of_model(place, tmp_path_factory):
    """An evaluation of the model: what it printed, and its folder."""
    output = tmp_path_factory.mktemp("of_model") / "evaluation"
    options = {"model": place.model, "num_images_per_mask": 2, "num_inference_steps": 2}
    return place.evaluate(output, **options), output, options


def results_of(folder):
    return json.loads((folder / "results.json").read_text())


def without_time(results):
    return {key: value for key, value in results.items() if key not in ("started", "seconds")}


def test_a_model_is_evaluated_from_the_masks_of_a_split(of_model):
    printed, output, _ = of_model
    results = results_of(output)
    assert results["data"] == {
        "num_real": 8, "num_train": 24, "num_generated": 16, "num_masks": 8, "masks_without_labels": [],
    }  # fmt: skip
    assert "generated" in printed
    assert f"{results['agreement']['generated']['mean_iou']:.3g}"[:5] in printed
    assert str(output / "report.html") in printed
    assert results["generation"]["num_inference_steps"] == 2
    assert results["resolution"] == [SIZE, SIZE]
    assert results["settings"]["num_images_per_mask"] == 2
    assert results["agreement"]["generated"]["absent"] == ["pole"]
    assert results["segmenter"]["validation"]["mean_iou"] == pytest.approx(results["agreement"]["real"]["mean_iou"])
    (diversity,) = results["diversity"]
    assert diversity["samples_per_mask"] == 2
    assert [entry["features"] for entry in results["neighbours"]][0] == results["fidelity"][0]["features"]["name"]
    assert len(results["neighbours"][0]["distances"]["generated"]) == 16
    assert results["paper_metrics"]["fid_64"] is None
    assert "inception" in results["paper_metrics"]["fid_64_missing"]
    assert -1 <= results["paper_metrics"]["ssim_paired"] < 1
    page = (output / "report.html").read_text()
    assert not re.search(r"(src|href)=[\"']?http", page)
    assert len(list((output / "generated" / "images").glob("*.png"))) == 16


def test_untrained_images_are_near_the_floor_and_real_images_far_above(of_model):
    agreement = results_of(of_model[1])["agreement"]
    assert agreement["real"]["mean_iou"] > 0.8
    assert agreement["generated"]["mean_iou"] < 0.4


def test_the_same_seed_gives_the_same_results_at_any_batch_size(place, of_model, tmp_path):
    _, output, options = of_model
    place.evaluate(tmp_path / "again", **options, batch_size=3)
    before, after = (without_time(results_of(folder)) for folder in (output, tmp_path / "again"))
    # images of other batches may differ by 1 of 255 levels
    assert after["agreement"]["real"] == before["agreement"]["real"]
    assert after["agreement"]["generated"]["mean_iou"] == pytest.approx(
        before["agreement"]["generated"]["mean_iou"], abs=5e-3
    )
    first = [
        entry["references"][0]["generated"]["frechet_distance"] for entry in (*before["fidelity"], *after["fidelity"])
    ]
    assert first[1] == pytest.approx(first[0], rel=1e-2)
    place.evaluate(tmp_path / "same", **options)
    same = without_time(results_of(tmp_path / "same"))
    assert {**same, "settings": None} == {**before, "settings": None}


def test_the_same_command_resumes_and_other_settings_need_another_folder(place, of_model):
    _, output, options = of_model
    before = results_of(output)
    images = {path: path.stat().st_mtime_ns for path in (output / "generated" / "images").iterdir()}
    cache = {path: path.stat().st_mtime_ns for path in (output / "cache").iterdir()}
    (output / "results.json").unlink()
    place.evaluate(output, **options)
    assert without_time(results_of(output)) == without_time(before)
    assert images == {path: path.stat().st_mtime_ns for path in (output / "generated" / "images").iterdir()}
    assert cache == {path: path.stat().st_mtime_ns for path in (output / "cache").iterdir()}
    error = place.evaluate(output, **{**options, "guidance_scale": 1.5}, expect=2)
    assert "guidance_scale: 2.0 there, 1.5 now" in error
    assert results_of(output)["settings"]["guidance_scale"] == 2.0


def test_real_images_as_generated_images_reach_ceiling_and_floor(place, tmp_path):
    place.evaluate(tmp_path / "out", generated=place.val_copy(tmp_path / "photos"))
    results = results_of(tmp_path / "out")
    agreement = results["agreement"]
    shares = agreement["generated"].pop("pixel_share")
    assert sum(shares.values()) == pytest.approx(1)
    assert agreement["generated"] == agreement["real"]
    assert agreement["shuffled"]["mean_iou"] < agreement["real"]["mean_iou"] - 0.4
    assert agreement["paper"]["mean_iou"] == 1.0
    against_val, against_train = results["fidelity"][0]["references"]
    assert "of the segmentation network itself" in against_val["note"]
    assert (against_val["reference"], against_train["reference"]) == ("val", "train")
    assert against_val["generated"]["frechet_distance"] == pytest.approx(0, abs=1e-3)
    assert against_val["floor"]["frechet_distance"] > 10 * against_val["generated"]["frechet_distance"]
    assert against_train["generated"] == {
        key: pytest.approx(value) for key, value in against_train["floor"].items() if key != "of"
    }
    assert results["paper_metrics"]["ssim_paired"] == pytest.approx(1)
    assert results["paper_metrics"]["ssim_unrelated"] < 0.5
    assert results["diversity"] is None
    assert any("--num_images_per_mask 2" in note for note in results["notes"])


def test_ssim_of_unrelated_images_uses_each_image_once(place, tmp_path):
    photos = place.val_copy(tmp_path / "photos")
    twice = place.val_copy(tmp_path / "twice")
    for path in list(twice.iterdir()):
        shutil.copy(path, path.with_stem(f"{path.stem}_1"))
        path.rename(path.with_stem(f"{path.stem}_0"))
    once, repeated = (
        EvaluationSettings(dataset=str(place.dataset), output="unused", generated=str(folder))
        for folder in (photos, twice)
    )
    pairs = load_pairs(place.dataset, "val")
    figures = [
        paper_figures(settings, photo_set(pairs), generated_images(settings.generated, pairs), None, [])
        for settings in (once, repeated)
    ]
    assert figures[0] == figures[1]
    assert figures[0]["ssim_unrelated"] < 0.5


def test_a_shuffled_pairing_makes_agreement_collapse(place, tmp_path):
    place.evaluate(tmp_path / "out", generated=place.val_copy(tmp_path / "photos", shift=1))
    agreement = results_of(tmp_path / "out")["agreement"]
    assert agreement["generated"]["mean_iou"] < agreement["real"]["mean_iou"] - 0.4


def test_blurred_images_make_distances_rise(place, tmp_path):
    fids = []
    for radius in (0, 2, 5):
        folder = place.val_copy(
            tmp_path / f"blur{radius}", lambda image, radius=radius: image.filter(ImageFilter.GaussianBlur(radius))
        )
        place.evaluate(tmp_path / f"out{radius}", generated=folder)
        fids.append(
            results_of(tmp_path / f"out{radius}")["fidelity"][0]["references"][0]["generated"]["frechet_distance"]
        )
    assert fids == sorted(fids)
    assert fids[0] < fids[1] < fids[2]


def test_a_copied_training_image_is_found(place, tmp_path):
    folder = place.val_copy(tmp_path / "photos")
    copied, source = sorted(folder.iterdir())[3], sorted((place.dataset / "train" / "images").iterdir())[7]
    shutil.copy(source, copied)
    place.evaluate(tmp_path / "out", generated=folder)
    neighbours = results_of(tmp_path / "out")["neighbours"]
    assert len(neighbours) == 2  # by features and by pixels
    for found in neighbours:
        closest = found["closest"][0]
        assert (closest["image"], closest["train_stem"]) == (copied.stem, source.stem)
        assert closest["distance"] == pytest.approx(0, abs=1e-4)
        assert found["num_closer"] >= 1


def test_unreadable_masks_are_refused_before_inference(place, tmp_path):
    folder = shutil.copytree(place.dataset / "val", tmp_path / "listed")
    path = sorted((folder / "masks").iterdir())[-1]
    Image.fromarray(np.full((SIZE, SIZE), 77, np.uint8)).save(path)
    error = place.evaluate(tmp_path / "out", generated=folder, expect=2)
    assert re.search(f"{path.name}.*holds class 77", error)
    assert not (tmp_path / "out").exists()


def test_the_papers_variant_is_omitted_without_predictions_on_real_images():
    masks = torch.zeros(2, 4, 4, dtype=torch.uint8)
    real = PredictedImages(("a", "b"), torch.full_like(masks, LABELS.ignore_index), masks)
    agreement = score_agreement(real, PredictedImages(("a", "b"), masks, masks), LABELS, seed=0)
    assert agreement.paper is None
    assert agreement.generated.mean_iou == 1
    assert agreement.real.mean_iou == 0


def test_classes_that_are_not_judged_are_no_errors_on_the_page():
    mask = torch.zeros(4, 4, dtype=torch.uint8)
    mask[2:] = LABELS.names.index("car")
    images = ImageSet(LABELS, ("a",), ("a",), lambda _: torch.zeros(3, 4, 4, dtype=torch.uint8), lambda _: mask)
    examples = {"best": [{"image": "a", "stem": "a"}], "worst": []}
    results = {"examples": examples, "neighbours": None, "segmenter": {"not_judged": ["car"]}}
    pictures = collect_images(results, images, None, images, torch.zeros(1, 4, 4, dtype=torch.uint8))
    shown = np.asarray(pictures.examples["a"][3].convert("RGB"))
    assert (shown[:2] == RIGHT).all()
    assert all(tuple(color) in UNKNOWN for color in shown[2:].reshape(-1, 3).tolist())
    assert (mask[2:] != LABELS.ignore_index).all()


def test_masks_without_labels_do_not_count(place, tmp_path):
    dataset = place.data_copy(tmp_path / "data")
    path = sorted((dataset / "val" / "masks").iterdir())[0]
    LABELS.decode(np.full((SIZE, SIZE), 255, np.uint8)).save(path)
    place.evaluate(tmp_path / "out", dataset=dataset, generated=place.val_copy(tmp_path / "photos"))
    results = results_of(tmp_path / "out")
    assert results["data"]["masks_without_labels"] == [path.stem]
    assert results["agreement"]["generated"]["num_pixels"] == 7 * SIZE * (SIZE - 2)
    assert path.stem not in {entry["stem"] for kind in ("best", "worst") for entry in results["examples"][kind]}
    for other in (dataset / "val" / "masks").iterdir():
        shutil.copy(path, other) if other != path else None
    error = place.evaluate(tmp_path / "none", dataset=dataset, generated=place.val_copy(tmp_path / "more"), expect=2)
    assert "no labelled pixel" in error
    error = place.evaluate(tmp_path / "none", dataset=dataset, model=place.model, expect=2)
    assert "no labelled pixel" in error
    assert not (tmp_path / "none").exists()  # before an image is generated


def test_without_training_images_halves_of_the_split_are_the_floor(place, tmp_path):
    place.evaluate(tmp_path / "out", generated=place.val_copy(tmp_path / "photos"), train_split="nothing")
    results = results_of(tmp_path / "out")
    (row,) = results["fidelity"][0]["references"]
    assert (row["n"], row["num_reference"], row["floor"]["of"]) == (4, 4, "the other half of val")
    assert results["neighbours"] is None
    assert any("has no split 'nothing'" in note for note in results["notes"])


def test_the_split_itself_is_no_training_split(place, tmp_path):
    folder = place.val_copy(tmp_path / "photos")
    place.evaluate(tmp_path / "out", generated=folder, train_split="validation")
    results = results_of(tmp_path / "out")
    (row,) = results["fidelity"][0]["references"]
    assert row["floor"]["of"] == "the other half of val"
    assert row["floor"]["frechet_distance"] > 0
    assert results["neighbours"] is None
    assert any("'validation' is the split that is evaluated" in note for note in results["notes"])


def test_broken_training_images_are_an_error(place, tmp_path):
    dataset = place.data_copy(tmp_path / "data")
    path = sorted((dataset / "train" / "images").iterdir())[0]
    Image.open(path).resize((16, 16)).save(path)
    error = place.evaluate(tmp_path / "out", dataset=dataset, generated=place.val_copy(tmp_path / "photos"), expect=2)
    assert "(train) differ in size" in error


def test_a_file_whose_name_starts_with_inception_is_a_file(place, tmp_path, monkeypatch):
    class Means(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.float().mean((2, 3))

    monkeypatch.chdir(tmp_path)
    folder = place.val_copy(tmp_path / "photos")
    for name in ("inception-2015-12-05.pt", "inception-64.pt"):
        torch.jit.script(Means()).save(name)
        place.evaluate(tmp_path / f"out_{name}", generated=folder, features=name)
        results = results_of(tmp_path / f"out_{name}")
        (entry,) = results["fidelity"]
        assert entry["features"]["name"] == name
        assert ("fid" in entry["references"][0]["generated"]) == (name == "inception-2015-12-05.pt")
        assert results["paper_metrics"]["fid_64"] is None


def test_a_dataset_without_a_label_set_takes_the_given_one(place, tmp_path):
    dataset = place.data_copy(tmp_path / "data")
    labels = (dataset / "labels.json").rename(tmp_path / "classes.json")
    images = place.val_copy(tmp_path / "photos")
    assert "labels.json" in place.evaluate(tmp_path / "out", dataset=dataset, generated=images, expect=2)
    place.evaluate(tmp_path / "out", dataset=dataset, generated=images, labels=labels, features="none")
    assert results_of(tmp_path / "out")["agreement"]["real"]["mean_iou"] > 0.8


def test_by_default_images_are_compared_in_features_of_imagenet_and_of_the_segmenter(place, tmp_path):
    printed = place.evaluate(tmp_path / "out", generated=place.val_copy(tmp_path / "photos"), features=None)
    results = results_of(tmp_path / "out")
    names = ["efficientnet-lite2", str(place.segmenter)]
    assert results["settings"]["features"] == names
    assert [entry["features"]["name"] for entry in results["fidelity"]] == names
    assert results["fidelity"][0]["features"]["num_features"] == 1280
    assert results["neighbours"][0]["features"] == "efficientnet-lite2"
    assert f"| Fréchet distance to val ({names[0]}) |" in printed


def test_without_imagenet_the_segmenter_is_used_and_the_note_says_what_to_install(place, tmp_path, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if "efficientnet" in name else find_spec(name))
    folder = place.val_copy(tmp_path / "photos")
    printed = place.evaluate(tmp_path / "out", generated=folder, features=None)
    assert results_of(tmp_path / "out")["settings"]["features"] == [str(place.segmenter)]
    assert "pip install 'semseg-diffusers[imagenet]'" in printed
    error = place.evaluate(tmp_path / "other", generated=folder, features="efficientnet-lite2", expect=2)
    assert re.search(r"--features: 'efficientnet-lite2' needs .*pip install 'semseg-diffusers\[imagenet\]'", error)


def test_features_can_be_omitted(place, tmp_path):
    place.evaluate(tmp_path / "out", generated=place.val_copy(tmp_path / "photos"), features="none")
    results = results_of(tmp_path / "out")
    assert results["fidelity"] == []
    assert [entry["features"].split()[1] for entry in results["neighbours"]] == ["thumbnails"]


class OnlyLarge(torch.nn.Module):
    """Takes the image that every network is tried on, and no photo of the place."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert images.shape[-1] > 100, "too small"
        return images.float().mean((2, 3))


class NotFinite(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.log(images.float().mean((2, 3)) - 300)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"segmenter": "facebook/mask2former-swin-large-cityscapes-semantic"}, r"--segmenter.*mask2former"),
        ({"features": "facebook/dinov2-small"}, r"--features.*dinov2-small"),
        ({"kid_subset_size": 9}, r"--kid_subset_size 9 is more than the 8 images of a set \(compared with val\)"),
        ({"num_masks": 1}, "expected two or more masks.*got 1"),
        ({"num_images_per_mask": 0}, "--num_images_per_mask must be 1 or more; got 0"),
        ({"split": "test"}, "has no split 'test'"),
        ({"device": "toaster"}, "--device toaster cannot be used here"),
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"features": "not_finite.pt"}, r"--features 'not_finite.pt' cannot read .* are not finite.*float32"),
        ({"features": "only_large.pt"}, r"--features 'only_large.pt' cannot read images of 32 x 32.*too small"),
    ],
)
def test_unsuitable_options_are_refused_before_an_image_is_generated(place, tmp_path, monkeypatch, changes, message):
    monkeypatch.chdir(tmp_path)
    torch.jit.script(OnlyLarge()).save("only_large.pt")
    torch.jit.script(NotFinite()).save("not_finite.pt")
    changes = {"model": place.model, **changes}
    error = place.evaluate(tmp_path / "out", expect=2, **changes)
    assert re.search(message, error), error
    assert not (tmp_path / "out" / "generated").exists()
    assert not (tmp_path / "out" / "results.json").exists()


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("ending", [".png", ".jpg"])
def test_a_truncated_image_is_refused_before_an_image_is_generated(place, tmp_path, split, ending):
    dataset = place.data_copy(tmp_path / "data")
    png = sorted((dataset / split / "images").iterdir())[-1]
    photo = png.with_suffix(ending)
    Image.open(png).save(photo, **({"quality": 98, "subsampling": 0} if ending == ".jpg" else {}))
    photo.write_bytes(photo.read_bytes()[:-200])
    if photo != png:
        png.unlink()
        listing = dataset / split / "metadata.jsonl"
        listing.write_text(listing.read_text().replace(f"images/{png.name}", f"images/{photo.name}"))
    error = place.evaluate(tmp_path / "out", model=place.model, dataset=dataset, num_inference_steps=2, expect=2)
    assert re.search(f"image '.*{photo.name}' cannot be read", error), error
    assert not (tmp_path / "out" / "generated").exists()
    assert not (tmp_path / "out" / "results.json").exists()


def test_a_model_of_another_size_or_other_classes_is_refused(place, tmp_path):
    small = place.data_copy(tmp_path / "small")
    for path in [*small.rglob("images/*.png"), *small.rglob("masks/*.png")]:
        picture = Image.open(path)
        picture.resize((16, 16), Image.Resampling.NEAREST).save(path)
    error = place.evaluate(tmp_path / "out", model=place.model, dataset=small, expect=2)
    assert "generates 32 x 32, '" in error
    assert "--resolution 32x32" in error
    (small / "labels.json").unlink()
    LabelSet = type(LABELS)  # noqa: N806
    LabelSet(("street", *LABELS.names[1:]), LABELS.colors).save_json(small / "labels.json")
    error = place.evaluate(tmp_path / "out", model=place.model, dataset=small, segmenter=place.segmenter, expect=2)
    assert re.search("street", error)


def test_a_folder_of_something_else_is_not_touched(place, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    error = place.evaluate(tmp_path / "mine", generated=place.val_copy(tmp_path / "photos"), expect=2)
    assert "was not made by evaluate (it holds thesis.txt)" in error
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_a_folder_of_masks_of_the_user_is_not_touched(place, tmp_path):
    masks = tmp_path / "mine" / "masks"
    shutil.copytree(place.dataset / "val" / "masks", masks)
    (masks / "scene000.png").rename(masks / "drawn.png")
    before = {path.name: path.read_bytes() for path in masks.iterdir()}
    error = place.evaluate(tmp_path / "mine", model=place.model, num_masks=2, num_inference_steps=1, expect=2)
    assert "was not made by evaluate (it holds masks)" in error
    assert before == {path.name: path.read_bytes() for path in masks.iterdir()}


@pytest.mark.parametrize("content", [b"[1]", b'{"settings": "none"}', b"\xff\xfe"])
def test_another_results_file_is_refused(place, tmp_path, content):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "results.json").write_bytes(content)
    error = place.evaluate(tmp_path / "out", generated=place.val_copy(tmp_path / "photos"), expect=2)
    assert re.search(r"error: '.*results.json' holds no results of evaluate", error)
    assert (tmp_path / "out" / "results.json").read_bytes() == content


def test_steps_and_guidance_are_those_the_model_recommends_and_results_hold_the_numbers(place, tmp_path):
    model = shutil.copytree(place.model, tmp_path / "model")
    index = json.loads((model / "model_index.json").read_text())
    recommended = {"default_num_inference_steps": 2, "default_guidance_scale": 1.0}
    (model / "model_index.json").write_text(json.dumps(index | recommended))
    place.evaluate(tmp_path / "out", model=model, num_masks=2)
    results = results_of(tmp_path / "out")
    for record in (results["settings"], results["generation"]):
        assert (record["num_inference_steps"], record["guidance_scale"]) == (2, 1.0)
    options = {"model": model, "num_masks": 2, "num_inference_steps": 2, "guidance_scale": 1.0}
    place.evaluate(tmp_path / "out", **options)  # as earlier versions, which knew no recommendation
    error = place.evaluate(tmp_path / "out", **options | {"num_inference_steps": 3}, expect=2)
    assert "num_inference_steps: 2 there, 3 now" in error


def test_settings_that_contradict_each_other_are_refused():
    for options in ({}, {"model": "a", "generated": "b"}):
        with pytest.raises(ValueError, match="--model.*or --generated, not both"):
            EvaluationSettings(dataset="d", output="o", **options)
    for name, options in {
        "--num_images_per_mask": {"num_images_per_mask": 2},
        "--revision, --num_masks, --scheduler": {"revision": "main", "num_masks": 2, "scheduler": "DDIMScheduler"},
        "--num_inference_steps, --guidance_scale": {"num_inference_steps": 9, "guidance_scale": 1.0, "seed": 4},
        "--variant": {"variant": "raw"},
    }.items():
        with pytest.raises(ValueError, match=f"^{name} only with --model"):
            EvaluationSettings(dataset="d", output="o", generated="b", **options)
    EvaluationSettings(dataset="d", output="o", generated="b", seed=4)
    with pytest.raises(ValueError, match="--kid_subset_size must be 2 or more"):
        EvaluationSettings(dataset="d", output="o", generated="b", kid_subset_size=1)


def test_evaluate_returns_the_results_and_keeps_the_random_state(place, tmp_path):
    state = torch.random.get_rng_state()
    results = evaluate(
        EvaluationSettings(
            dataset=str(place.dataset),
            output=str(tmp_path / "out"),
            generated=str(place.val_copy(tmp_path / "photos")),
            segmenter=str(place.segmenter),
            features=(str(place.segmenter),),
        )
    )
    assert torch.equal(state, torch.random.get_rng_state())
    assert json.loads(json.dumps(results)) == results_of(tmp_path / "out")
