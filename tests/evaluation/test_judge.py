"""The judge: classes of any network are mapped to those of the data, whatever the batch; scores count its mistakes."""

import json
import shutil

import pytest
import torch
import torch.nn.functional as F
from helpers.segmenters import save_network
from transformers import (
    AutoImageProcessor,
    AutoModelForSemanticSegmentation,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    MobileViTConfig,
    MobileViTForSemanticSegmentation,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SwinConfig,
    ViTConfig,
    ViTForImageClassification,
)

from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.evaluation.metrics import (
    image_scores,
    new_confusion_matrix,
    scores_from_confusion_matrix,
    update_confusion_matrix,
    without_classes,
)
from semseg_diffusers.evaluation.segmentation.judge import load_judge
from semseg_diffusers.evaluation.segmentation.networks import new_network
from semseg_diffusers.evaluation.settings import ARCHITECTURES, HUB_SEGMENTER


CAMVID = LabelSet.from_preset("camvid")
CITYSCAPES = LabelSet.from_preset("cityscapes")
FOUR = LabelSet(("sky", "car", "truck", "tree"), tuple((i, 0, 0) for i in range(1, 5)))
LION = LabelSet(("sky", "car", "lion"), ((70, 130, 180), (0, 0, 142), (9, 9, 9)))
CLASSES = {"id2label": CITYSCAPES.id2label, "label2id": CITYSCAPES.label2id}
SEGFORMER_PROCESSOR = ARCHITECTURES["segformer-mini"].processor
MOBILEVIT_PROCESSOR = ARCHITECTURES["mobilevit-deeplabv3"].processor
MASK2FORMER_PROCESSOR = {
    **SEGFORMER_PROCESSOR,
    "image_processor_type": "Mask2FormerImageProcessor",
    "size": {"shortest_edge": 64, "longest_edge": 96},
    "size_divisor": 32,
    "ignore_index": 255,
}


def photos(count=3, height=24, width=40):
    coarse = torch.randint(0, 256, (count, 3, height // 4, width // 4), generator=torch.Generator().manual_seed(0))
    return coarse.repeat_interleave(4, 2).repeat_interleave(4, 3).byte()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Save tiny random networks with Cityscapes' classes, each with its image processor."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("networks")
    segformer = SegformerConfig(
        hidden_sizes=[8, 8, 8, 8],
        depths=[1, 1, 1, 1],
        num_attention_heads=[1, 1, 1, 1],
        decoder_hidden_size=8,
        **CLASSES,
    )
    mobilevit = MobileViTConfig(
        hidden_sizes=[8, 8, 8],
        neck_hidden_sizes=[8, 8, 8, 8, 8, 8, 8],
        num_attention_heads=1,
        aspp_out_channels=8,
        output_stride=8,
        **CLASSES,
    )
    swin = SwinConfig(
        image_size=64, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=2,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    mask2former = Mask2FormerConfig(
        backbone_config=swin, hidden_dim=32, feature_size=32, mask_feature_size=32, num_attention_heads=2,
        encoder_feedforward_dim=16, dim_feedforward=16, encoder_layers=1, decoder_layers=2, num_queries=12, **CLASSES,
    )  # fmt: skip
    for name, network, processor in (
        (
            "segformer",
            SegformerForSemanticSegmentation(segformer),
            {**SEGFORMER_PROCESSOR, "size": {"height": 64, "width": 64}},
        ),
        (
            "mobilevit",
            MobileViTForSemanticSegmentation(mobilevit),
            {**MOBILEVIT_PROCESSOR, "size": {"shortest_edge": 64}, "do_center_crop": True},
        ),
        ("mask2former", Mask2FormerForUniversalSegmentation(mask2former), MASK2FORMER_PROCESSOR),
    ):
        with torch.no_grad():  # random outputs that differ from pixel to pixel
            for parameter in network.parameters():
                if parameter.ndim > 1:
                    torch.nn.init.xavier_normal_(parameter, gain=2)
            for module in network.modules():
                if isinstance(module, torch.nn.BatchNorm2d):
                    torch.nn.init.ones_(module.weight)
        save_network(root / name, network, processor)
    return root


NETWORKS = ("segformer", "mobilevit", "mask2former")


def test_the_identity_holds_all_that_predictions_depend_on(folders, tmp_path):
    judge = load_judge(folders / "segformer", CAMVID)
    assert json.loads(json.dumps(judge.identity((24, 40))))["preprocessing"]["size"] == {"height": 64, "width": 64}
    folder = shutil.copytree(folders / "segformer", tmp_path / "segformer")
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps({**settings, "image_mean": [0.1, 0.2, 0.3]}))
    names = ("lorry", *CAMVID.names[1:])
    for other in (load_judge(folder, CAMVID), load_judge(folders / "segformer", LabelSet(names, CAMVID.colors))):
        assert not torch.equal(other.read(photos()), judge.read(photos()))
        assert {**other.identity((24, 40)), "name": ""} != {**judge.identity((24, 40)), "name": ""}


@pytest.mark.parametrize("name", NETWORKS)
def test_predictions_equal_those_of_transformers(folders, name):
    judge = load_judge(folders / name, CITYSCAPES)
    read = judge.read(photos())
    assert read.shape == (3, 24, 40)
    assert read.dtype == torch.uint8
    assert len(read.unique()) > 1
    processor = AutoImageProcessor.from_pretrained(
        folders / name, **{"do_center_crop": False} if name == "mobilevit" else {}
    )
    inputs = processor(list(photos()), return_tensors="pt")
    loader = Mask2FormerForUniversalSegmentation if name == "mask2former" else AutoModelForSemanticSegmentation
    with torch.no_grad():
        outputs = loader.from_pretrained(folders / name).eval()(inputs["pixel_values"])
    maps = processor.post_process_semantic_segmentation(outputs, target_sizes=[(24, 40)] * 3)
    # PIL rounds after each direction, so a level may differ; random networks decide many pixels by next to nothing
    assert (read == torch.stack(maps)).float().mean() > 0.9


@pytest.mark.parametrize("name", NETWORKS)
def test_the_batch_size_does_not_change_predictions(folders, name):
    judge = load_judge(folders / name, CITYSCAPES)
    together = judge.read(photos())
    assert torch.equal(together, torch.cat([judge.read(photo[None]) for photo in photos()]))


@pytest.mark.parametrize("name", NETWORKS)
def test_predicted_classes_are_mapped_to_those_of_the_data(folders, name):
    ids = load_judge(folders / name, CITYSCAPES).read(photos())
    judge = load_judge(folders / name, CAMVID)
    expected = {
        "wall": "building",
        "traffic light": "traffic sign",
        "terrain": "vegetation",
        "truck": "car",
        "bus": "car",
    }
    expected |= {"train": "car", "motorcycle": "rider", "bicycle": "rider"}
    table = torch.tensor([CAMVID.label2id[expected.get(label, label)] for label in CITYSCAPES.names])
    assert torch.equal(judge.read(photos()).long(), table[ids.long()])
    assert judge.not_judged == ()
    assert judge.labels is CAMVID


def test_classes_without_a_counterpart_become_unknown_and_are_listed(folders):
    labels = LabelSet(("animal", *CITYSCAPES.names[8:]), ((9, 9, 9), *CITYSCAPES.colors[8:]), ignore_index=200)
    ids = load_judge(folders / "segformer", CITYSCAPES).read(photos())
    judge = load_judge(folders / "segformer", labels)
    assert judge.not_judged == ("animal",)
    read = judge.read(photos())
    assert torch.equal(read == 200, ids < 8)  # vegetation is the first that the data knows
    assert torch.equal(read[ids >= 8], ids[ids >= 8] - 7)
    with pytest.raises(ValueError, match="predicts road, sidewalk, building, wall, ..., and none of the classes of"):
        load_judge(folders / "segformer", LabelSet(("cat", "dog"), ((1, 1, 1), (2, 2, 2))))


def test_the_input_size_is_that_of_the_processor_by_default(folders):
    sizes = [load_judge(folders / name, CAMVID).preprocessing.input_size(24, 40) for name in NETWORKS]
    assert sizes == [(64, 64), (64, 106), (64, 96)]
    judge = load_judge(folders / "segformer", CAMVID, input_size=32)
    assert judge.preprocessing.input_size(24, 40) == (32, 53)
    assert load_judge(folders / "segformer", CAMVID, input_size=(32, 64)).describe()["input_size"] == [32, 64]
    assert load_judge(folders / "mask2former", CAMVID, input_size=32).preprocessing.input_size(24, 40) == (32, 64)


def test_a_judge_describes_itself(folders):
    judge = load_judge(folders / "mobilevit", CAMVID)
    description = judge.describe()
    assert json.loads(json.dumps(description)) == description
    assert description["architecture"] == "MobileViTForSemanticSegmentation"
    assert description["revision"].startswith("sha256:")
    assert description["classes"] == 19
    assert description["input_size"] is None
    assert judge.describe((24, 40))["input_size"] == [64, 106]
    assert description["validation"] is None
    assert description["not_judged"] == []
    half = load_judge(folders / "mobilevit", CAMVID, dtype=torch.bfloat16)
    assert half.describe() == description
    assert half.read(photos()).shape == (3, 24, 40)


def test_networks_of_another_kind_are_refused_with_a_hint(folders, tmp_path):
    with pytest.raises(
        OSError, match=f"--segmenter: loading config.json of '{HUB_SEGMENTER}'.*cache.*model.safetensors"
    ):
        load_judge(HUB_SEGMENTER, CITYSCAPES)
    with pytest.raises(ValueError, match="--segmenter: there is no folder './nothing'"):
        load_judge("./nothing", CITYSCAPES)
    with pytest.raises(ValueError, match="is a local folder and has no revision 'main'"):
        load_judge(folders / "segformer", CITYSCAPES, revision="main")
    with pytest.raises(ValueError, match="--segmenter: loading config.json.*give --segmenter a folder"):
        load_judge(tmp_path, CITYSCAPES)
    config = ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, image_size=32)
    ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    with pytest.raises(ValueError, match="is a vit; expected a transformers network for semantic segmentation"):
        load_judge(tmp_path / "vit", CITYSCAPES)
    judge = load_judge(folders / "segformer", CITYSCAPES)
    with pytest.raises(ValueError, match=r"expected uint8 images \(B, 3, H, W\); got torch.float32"):
        judge.read(torch.zeros(1, 3, 24, 40))


def test_a_missing_file_is_named_and_pickles_are_not_read(folders, tmp_path):
    network = SegformerForSemanticSegmentation.from_pretrained(folders / "segformer")
    network.config.save_pretrained(tmp_path)
    torch.save(network.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"--segmenter: loading preprocessor_config.json"):
        load_judge(tmp_path, CITYSCAPES)
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({**SEGFORMER_PROCESSOR, "size": {"height": 8, "width": 8}})
    )
    with pytest.raises(ValueError, match=r"loading the weights \(model.safetensors; pickles are not read\)"):
        load_judge(tmp_path, CITYSCAPES)


# Losses --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory):
    """Save an untrained network of the classes sky, car, truck, tree: car and truck map to one class of `LION`."""
    network = new_network("segformer-mini", FOUR, seed=0)
    processor = {**SEGFORMER_PROCESSOR, "size": {"height": 32, "width": 32}}
    return save_network(tmp_path_factory.mktemp("segmenter"), network, processor)


def test_the_loss_is_the_cross_entropy_at_the_networks_own_resolution(segmenter):
    judge = load_judge(segmenter, FOUR)
    masks = torch.randint(0, 4, (2, 16, 16), generator=torch.Generator().manual_seed(1))
    losses = judge.losses(photos(2, 16, 16), masks)
    with torch.no_grad():
        logits = judge.network(judge.preprocessing(photos(2, 16, 16))).logits
    assert judge.preprocessing.input_size(16, 16) == (32, 32)
    expected = F.cross_entropy(F.interpolate(logits, (16, 16), mode="bilinear"), masks, reduction="none")
    torch.testing.assert_close(losses, expected)


def test_probabilities_of_classes_that_map_to_one_are_added(segmenter):
    judge = load_judge(segmenter, LION)
    masks = torch.ones(2, 16, 16, dtype=torch.uint8)
    with torch.no_grad():
        logits = judge.network(judge.preprocessing(photos(2, 16, 16))).logits
    probabilities = F.interpolate(logits, (16, 16), mode="bilinear").softmax(1)
    torch.testing.assert_close(judge.losses(photos(2, 16, 16), masks), -probabilities[:, 1:3].sum(1).log())


def test_a_batch_of_two_has_the_losses_of_two_singles(segmenter):
    judge, masks = load_judge(segmenter, LION), torch.ones(2, 16, 16, dtype=torch.uint8)
    singles = [judge.losses(image[None], mask[None]) for image, mask in zip(photos(2, 16, 16), masks, strict=True)]
    torch.testing.assert_close(judge.losses(photos(2, 16, 16), masks), torch.cat(singles))


def test_unknown_pixels_and_classes_unknown_to_the_network_have_no_loss(segmenter):
    judge = load_judge(segmenter, LION)
    masks = torch.tensor([0, 1, 2, 255], dtype=torch.uint8).repeat(1, 16, 4)
    losses = judge.losses(photos(1, 16, 16), masks)
    assert torch.equal(losses.isnan(), masks >= 2)
    with pytest.raises(ValueError, match=r"expected masks of shape \(2, 16, 16\); got \(1, 16, 16\)"):
        judge.losses(photos(2, 16, 16), masks)


def test_a_mask_classifier_is_refused_as_it_has_no_losses(folders):
    with pytest.raises(ValueError, match="a Mask2FormerForUniversalSegmentation, which gives no class probabilities"):
        load_judge(folders / "mask2former", CAMVID).losses(photos(), torch.zeros(3, 24, 40, dtype=torch.uint8))


# Scores of predictions -------------------------------------------------------------------------------------------


def test_an_unknown_prediction_on_a_labelled_pixel_counts_as_wrong():
    matrix = new_confusion_matrix(2)
    update_confusion_matrix(matrix, torch.tensor([[0, 0, 255, 255]]), torch.tensor([[0, 1, 1, 255]]))
    scores = scores_from_confusion_matrix(matrix.compute(), ["sky", "road"], 1)
    assert scores.iou == {"sky": 0.5, "road": 0.0}
    assert scores.pixel_accuracy == pytest.approx(1 / 3)
    assert scores.num_pixels == 3


def test_each_image_has_its_own_scores():
    masks = torch.tensor([[[0, 1]], [[1, 1]], [[255, 255]]], dtype=torch.uint8)
    predictions = torch.tensor([[[0, 0]], [[1, 255]], [[0, 1]]], dtype=torch.uint8)
    first, second, third = image_scores(predictions, masks, ["sky", "road"])
    assert first.mean_iou == 0.25
    assert (second.mean_iou, second.absent) == (0.5, ("sky",))
    assert third is None


def test_classes_that_are_not_judged_become_unknown():
    masks = torch.tensor([[0, 1, 2, 255]], dtype=torch.uint8)
    assert without_classes(masks, CAMVID.names, ["building", "pole"]).tolist() == [[0, 255, 255, 255]]
    assert torch.equal(without_classes(masks, CAMVID.names, []), masks)
    assert masks.tolist() == [[0, 1, 2, 255]]
    with pytest.raises(ValueError, match="no class is called tram"):
        without_classes(masks, CAMVID.names, ["tram"])
