"""`semseg-diffusers convert`: parity with the authors' outputs, whole pipelines, and all that it refuses, by name."""

import json
import os
import re
from pathlib import Path

import pytest
import torch
from helpers.golden_weights import golden_values
from helpers.loading import OUR_CLASS, REMOTE_CODE
from helpers.page_blocks import run_line
from helpers.published_checkpoints import konz_folder, lightning, paper_weights, sdm_weights
from PIL import Image
from safetensors.torch import save_file

from semseg_diffusers import LabelSet, MaskGuidedDDPMPipeline, cli
from semseg_diffusers.hub.folders import check_model_folder
from semseg_diffusers.models.published.unet_paper import paper_betas


KONZ = "segmentation-guided-diffusion"
SDM_OPTIONS = ("--sample_size", 32, "--num_head_channels", 16)


def convert(*words: object) -> int:
    return cli.main(["convert", *map(str, words)])


def refused(capsys, output: Path, *words: object) -> str:
    """Run a conversion that must fail, leave nothing behind, and say so in one line."""
    before = set(output.parent.iterdir())
    assert convert(*words, "--output", output) == 2
    assert set(output.parent.iterdir()) == before
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.strip().splitlines()
    return line


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """Checkpoints that convert: paper.pt, lightning.ckpt (the average is golden), sdm.pt, konz/."""
    folder = tmp_path_factory.mktemp("published")
    paper = paper_weights()
    torch.save(paper, folder / "paper.pt")
    torch.save(lightning(paper, {key: 2 * value for key, value in paper.items()}), folder / "lightning.ckpt")
    torch.save(sdm_weights(), folder / "sdm.pt")
    konz_folder(folder / "konz")
    LabelSet.from_preset("paper").save_json(folder / "labels.json")
    colormap = {name: list(color) for name, color in zip(*_paper_classes(), strict=True)}
    (folder / "colormap.json").write_text(json.dumps(colormap))
    return folder


def _paper_classes():
    labels = LabelSet.from_preset("paper")
    return labels.names, labels.colors


@pytest.fixture(scope="module")
def converted(files, tmp_path_factory) -> Path:
    """The three of them converted: paper/, sdm/, konz/."""
    folder = tmp_path_factory.mktemp("converted")
    colormap = ("--colormap", files / "colormap.json")
    assert convert("--from", "paper", files / "lightning.ckpt", "--output", folder / "paper", *colormap) == 0
    assert convert("--from", "sdm", files / "sdm.pt", "--output", folder / "sdm", *SDM_OPTIONS) == 0
    assert convert("--from", KONZ, files / "konz", "--output", folder / "konz", "--num_classes", 4) == 0
    return folder


def load(folder: Path) -> MaskGuidedDDPMPipeline:
    pipe = MaskGuidedDDPMPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


# The authors' outputs, through the converters


@torch.no_grad()
def test_paper_predicts_what_its_authors_network_predicts(converted):
    unet, values = load(converted / "paper").unet, golden_values("paper_unet_tiny")
    masked = unet(values["sample"], values["timestep"], mask=values["label_map"]).sample
    torch.testing.assert_close(masked, values["output_masked"], rtol=0, atol=1e-4)
    unmasked = unet(values["sample"], values["timestep"]).sample
    torch.testing.assert_close(unmasked, values["output_unmasked"], rtol=0, atol=1e-4)


@torch.no_grad()
def test_sdm_predicts_what_its_authors_network_predicts(converted):
    unet, values = load(converted / "sdm").unet, golden_values("sdm_unet_tiny")
    masked = unet(values["sample"], values["timestep"], mask=values["label_map"]).sample
    torch.testing.assert_close(masked, values["output_masked"], rtol=0, atol=1e-4)
    null = unet(values["sample"], values["timestep"], mask=torch.full((2, 32, 32), 255)).sample
    torch.testing.assert_close(null, values["output_null_mask"], rtol=0, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("channels", [1, 3])
def test_konz_predicts_what_the_plain_network_predicts_from_image_and_ids(channels, tmp_path):
    plain = konz_folder(tmp_path / "theirs", channels)
    assert convert("--from", KONZ, tmp_path / "theirs", "--output", tmp_path / "ours", "--num_classes", 4) == 0
    unet = load(tmp_path / "ours").unet
    sample, mask = torch.randn(2, channels, 16, 16), torch.randint(0, 4, (2, 16, 16))
    expected = plain(torch.cat([sample, mask[:, None] / 255], dim=1), 7).sample
    assert torch.equal(unet(sample, 7, mask=mask).sample, expected)


# Which weights, which classes


def test_average_is_taken_unless_the_raw_weights_are_asked_for(files, tmp_path, capsys):
    expected = paper_weights()["outc.weight"]
    for options, factor, said in (((), 1, "exponential average"), (("--weights", "raw"), 2, "as trained")):
        output = tmp_path / said
        assert convert("--from", "paper", files / "lightning.ckpt", "--output", output, *options) == 0
        assert torch.equal(load(output).unet.outc.weight, factor * expected)
        assert f"weights taken: {said}" in re.sub("the exp", "exp", capsys.readouterr().out)
        assert said in (output / "README.md").read_text()


@pytest.mark.parametrize("form", ["plain", "only raw", "prefixed state dict", "safetensors", "float16"])
def test_every_form_of_the_papers_weights_is_read(form, tmp_path):
    weights = paper_weights()
    path = tmp_path / ("weights.safetensors" if form == "safetensors" else "weights.ckpt")
    if form == "safetensors":
        save_file(weights, path)
    else:
        content = {
            "plain": weights,
            "only raw": lightning(None, weights),
            "prefixed state dict": lightning(weights, weights)["state_dict"],
            "float16": {key: value.half() for key, value in weights.items()},
        }[form]
        torch.save(content, path)
    assert convert("--from", "paper", path, "--output", tmp_path / "out") == 0
    unet = load(tmp_path / "out").unet
    torch.testing.assert_close(unet.outc.weight, weights["outc.weight"], rtol=0, atol=1e-3)
    assert unet.dtype == torch.float32


def test_colormap_becomes_the_label_set_and_its_colours_are_read(converted, files, tmp_path):
    labels = LabelSet.from_preset("paper")
    pipe = load(converted / "paper")
    assert LabelSet.from_config(pipe.unet.config) == labels
    ids = golden_values("paper_unet_tiny")["label_map"][0]
    options = {"num_inference_steps": 1, "output_type": "latent", "height": 32, "width": 32}
    images = [
        pipe(mask, generator=torch.Generator().manual_seed(0), **options).images
        for mask in (ids, labels.decode(ids).convert("RGB"))
    ]
    assert torch.equal(*images)


def test_without_a_colormap_classes_have_numbers_and_colours_that_differ(converted, tmp_path):
    labels = LabelSet.from_config(load(converted / "sdm").unet.config)
    assert labels.names == tuple(f"class {i}" for i in range(12))
    weights = sdm_weights()
    shared = [key for key in weights if key.endswith("mlp_shared.0.weight")]
    weights |= {key: weights[key][:, :1].expand(-1, 255, -1, -1).clone() for key in shared}
    torch.save(weights, tmp_path / "sdm.pt")
    assert convert("--from", "sdm", tmp_path / "sdm.pt", "--output", tmp_path / "out", *SDM_OPTIONS) == 0
    assert LabelSet.from_config(load(tmp_path / "out").unet.config).num_classes == 255


def test_instance_edges_are_the_last_channel_of_the_mask(files, tmp_path):
    assert (
        convert("--from", "sdm", files / "sdm.pt", "--output", tmp_path / "out", *SDM_OPTIONS, "--instance_edges") == 0
    )
    unet, values = load(tmp_path / "out").unet, golden_values("sdm_unet_tiny")
    assert (unet.config.num_classes, unet.config.instance_edges) == (11, True)
    one_hot = torch.nn.functional.one_hot(values["label_map"], 12).permute(0, 3, 1, 2).float()
    with torch.no_grad():
        output = unet(values["sample"], values["timestep"], mask=one_hot).sample
    torch.testing.assert_close(output, values["output_masked"], rtol=0, atol=1e-4)


def test_size_of_sdms_images_follows_from_its_widths(tmp_path):
    from semseg_diffusers.models.published.unet_sdm import SDMUNet2DModel

    unet = SDMUNet2DModel(model_channels=32, channel_mult=(1, 2, 3, 4), num_res_blocks=2, num_head_channels=32)
    torch.save(unet.state_dict(), tmp_path / "sdm.pt")
    assert convert("--from", "sdm", tmp_path / "sdm.pt", "--output", tmp_path / "out", "--num_head_channels", 32) == 0
    config = load(tmp_path / "out").unet.config
    assert config.sample_size == 64
    assert list(config.channel_mult) == [1, 2, 3, 4]
    assert (config.num_res_blocks, list(config.attention_resolutions)) == (2, [8])


# What comes out is an ordinary pipeline


def test_schedulers_are_those_of_the_papers(converted):
    paper, sdm, konz = (load(converted / name).scheduler for name in ("paper", "sdm", "konz"))
    assert paper.config.trained_betas == paper_betas(1000)
    assert (paper.config.variance_type, paper.config.clip_sample) == ("fixed_large", False)
    torch.testing.assert_close(sdm.betas, torch.linspace(1e-4, 0.02, 1000), rtol=0, atol=1e-8)
    assert (sdm.config.variance_type, sdm.config.clip_sample) == ("learned_range", True)
    assert type(konz).__name__ == "DDIMScheduler"


@pytest.mark.parametrize(("name", "expected"), [("paper", (1000, 3.0)), ("sdm", (1000, 1.5)), ("konz", (20, 1.0))])
def test_a_converted_pipeline_recommends_the_steps_and_guidance_of_its_authors(converted, name, expected):
    assert load(converted / name).resolve_sampling() == expected


@pytest.mark.parametrize("name", ["paper", "sdm", "konz"])
def test_folder_is_whole_and_its_card_says_where_it_came_from(converted, name):
    folder = converted / name
    assert check_model_folder(folder)["_class_name"] == "MaskGuidedDDPMPipeline"  # what `push` asks first
    record = json.loads((folder / "conversion.json").read_text())
    card = (folder / "README.md").read_text()
    assert f"convert --from {record['from']}` from `{record['checkpoint']}` (SHA-256 {record['sha256']})" in card
    assert "are not recorded in them: find out, say it here, and set the\nlicence" in card
    assert f"# {name}\n" in card
    assert "license:" not in card.split("---")[1]
    assert str(folder.parent) not in card


def test_paper_generates_from_a_folder_of_masks(converted, tmp_path):
    labels = LabelSet.from_preset("paper")
    (tmp_path / "masks").mkdir()
    labels.decode(golden_values("paper_unet_tiny")["label_map"][0]).save(tmp_path / "masks" / "a.png")
    command = ["generate", "--model", converted / "paper", "--masks", tmp_path / "masks", "--output", tmp_path / "new"]
    assert cli.main([*map(str, command), "--num_inference_steps", "1", "--device", "cpu"]) == 0
    assert Image.open(next((tmp_path / "new" / "images").iterdir())).size == (128, 128)


DRAW = """
pipe.set_progress_bar_config(disable=True)
ids = torch.arange(32 * 32).reshape(1, 32, 32) % 4
options = {"height": 32, "width": 32, "num_inference_steps": 2, "output_type": "pt"}
torch.save(pipe(ids, generator=torch.Generator().manual_seed(0), **options).images, sys.argv[2])
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["paper", "sdm", "konz"])
def test_converted_folder_generates_the_same_in_a_clean_process_without_the_package(
    converted, name, tmp_path, clean_process
):
    clean_process(OUR_CLASS + DRAW, converted / name, tmp_path / "with.pt")
    clean_process(
        REMOTE_CODE + DRAW, converted / name, tmp_path / "without.pt", tmp_path / "again", without_package=True
    )
    assert torch.equal(torch.load(tmp_path / "with.pt"), torch.load(tmp_path / "without.pt"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["paper", "sdm", "konz"])
def test_converted_folder_is_pushed_with_its_card(converted, hub, name, tmp_path):
    run_line(f"semseg-diffusers push --model {converted / name} --repo_id alice/{name}", hub.environment(tmp_path))
    files = hub.model(f"alice/{name}").files()
    network = {"paper": "unet_paper", "sdm": "unet_sdm", "konz": "unet_id_channel"}[name]
    assert {"pipeline.py", f"unet/{network}.py", "unet/diffusion_pytorch_model.safetensors"} <= files.keys()
    assert "Converted by `semseg-diffusers convert" in files["README.md"].data.decode()


def test_converting_again_needs_overwrite_and_never_replaces_anything_else(files, tmp_path, capsys):
    words = ("--from", "paper", files / "paper.pt")
    output = tmp_path / "out"
    assert convert(*words, "--output", output) == 0
    capsys.readouterr()
    assert "is not empty" in refused(capsys, output, *words)
    assert convert(*words, "--output", output, "--overwrite") == 0
    capsys.readouterr()
    (output / "conversion.json").unlink()
    assert "has no conversion.json" in refused(capsys, output, *words, "--overwrite")


# What is refused


class Command:
    """Pickled, it is a call that the unpickler would make."""

    def __reduce__(self):
        return (os.system, ("touch ran.txt",))


@pytest.mark.parametrize("form", ["new", "legacy", "nested"])
def test_pickle_with_code_is_refused_by_name_and_does_not_run(form, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    content = {"inc.double_conv.0.weight": Command()}
    if form == "nested":  # as Lightning's hyper-parameters lie beside the weights
        content = {**lightning(paper_weights(), None), "hyper_parameters": {"onehotencoder": Command()}}
    torch.save(content, "evil.ckpt", _use_new_zipfile_serialization=form != "legacy")
    for source in ("paper", "sdm"):
        line = refused(capsys, tmp_path / "out", "--from", source, "evil.ckpt")
        assert f"'evil.ckpt' holds more than weights: {os.system.__module__}.system. " in line
        assert "extract the weights" in line
        assert ("`ema_model_epoch_N.ckpt`" in line) == (source == "paper")
    assert not Path("ran.txt").exists()


def test_folder_with_code_in_its_weights_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    konz_folder(tmp_path / "konz", safe=False)
    weights = tmp_path / "konz" / "unet" / "diffusion_pytorch_model.bin"
    assert convert("--from", KONZ, "konz", "--output", "out", "--num_classes", 4) == 0  # a pickle of weights alone
    capsys.readouterr()
    torch.save({**torch.load(weights), "conv_in.bias": Command()}, weights)
    line = refused(capsys, tmp_path / "other", "--from", KONZ, "konz", "--num_classes", 4)
    assert "holds more than weights" in line
    assert not Path("ran.txt").exists()


@pytest.mark.filterwarnings("ignore:.*TorchScript archive:UserWarning", "ignore:.*torch.jit:DeprecationWarning")
def test_program_is_refused(tmp_path, capsys):
    torch.jit.script(torch.nn.Linear(1, 1)).save(tmp_path / "program.pt")
    line = refused(capsys, tmp_path / "out", "--from", "paper", tmp_path / "program.pt")
    assert "a TorchScript program" in line


@pytest.mark.parametrize("content", [b"", b"no pickle at all", b"PK\x03\x04cut", b"\x80\x02}q\x00."])
@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
def test_file_that_is_no_checkpoint_is_refused(content, name, tmp_path, capsys):
    (tmp_path / name).write_bytes(content)
    line = refused(capsys, tmp_path / "out", "--from", "paper", tmp_path / name)
    assert f"{name}' " in line


def test_cut_off_checkpoint_is_refused(files, tmp_path, capsys):
    content = (files / "paper.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(content[: len(content) // 2])
    line = refused(capsys, tmp_path / "out", "--from", "paper", tmp_path / "cut.pt")
    assert "cannot be read as a checkpoint" in line


def changed(weights: dict, **changes) -> dict:
    """A state dict with keys (dots as "__") replaced, or left out where None."""
    weights = dict(weights)
    for name, value in changes.items():
        key = name.replace("__", ".")
        weights.pop(key, None)
        if value is not None:
            weights[key] = value
    return weights


PAPER_REFUSALS = {
    "missing": (lambda w: changed(w, sa3__ln__weight=None), r"1 keys are missing \(sa3.ln.weight\)"),
    "many missing": (
        lambda w: {key: value for key, value in w.items() if not key.startswith("sa")},
        r"does not fit a PaperUNet2DModel: 24 keys are missing \(sa3.mha.in_proj_weight, .* and 19 more\)\.$",
    ),
    "extra": (lambda w: changed(w, head__bias=torch.zeros(1)), r"1 keys are unexpected \(head.bias\)"),
    "shape": (
        lambda w: changed(w, bot1__double_conv__1__bias=torch.zeros(3)),
        r"1 shapes differ \(bot1.double_conv.1.bias \(3,\), expected \(64,\)\)",
    ),
    "dimensions": (lambda w: changed(w, outc__weight=torch.zeros(3)), r"outc.weight has the shape \(3,\); expected 4"),
    "not finite": (
        lambda w: changed(w, outc__bias=torch.full((3,), float("nan"))),
        "weights that are not finite: outc.bias",
    ),
    "integers": (lambda w: changed(w, outc__bias=torch.zeros(3, dtype=torch.long)), "no state dict of weights"),
    "numbers": (lambda w: {**w, "epoch": 3}, r"no state dict of weights: epoch \(int\)"),
    "list": (lambda w: list(w.values()), "holds a list; expected a state dict"),
    "sdm": (lambda _: sdm_weights(), "inc.double_conv.0.weight is missing.*It looks like --from sdm"),
    "diffusers": (
        lambda _: {"down_blocks.0.x": torch.zeros(1)},
        "It looks like a network of diffusers: --from segmentation-guided-diffusion takes its folder",
    ),
    "else": (lambda _: {"weight": torch.zeros(1)}, "not in the layout of --from paper: .* It holds weight"),
    "prefix": (
        lambda w: {**lightning(w, w)["state_dict"], "criterion.weight": torch.zeros(1)},
        "neither ema_model. nor model.: criterion.weight",
    ),
}


@pytest.mark.parametrize("case", PAPER_REFUSALS)
def test_wrong_paper_checkpoint_is_refused_by_name(case, tmp_path, capsys):
    change, message = PAPER_REFUSALS[case]
    torch.save(change(paper_weights()), tmp_path / "wrong.pt")
    line = refused(capsys, tmp_path / "out", "--from", "paper", tmp_path / "wrong.pt")
    assert "wrong.pt'" in line
    assert re.search(message, line), line


def without_scale_shift(weights: dict) -> dict:
    return {key: value[: len(value) // 2] if "emb_layers" in key else value for key, value in weights.items()}


SDM_REFUSALS = {
    "paper": (lambda _: paper_weights(), (), "input_blocks.0.0.weight is missing.*It looks like --from paper"),
    "missing": (lambda w: changed(w, out__0__bias=None), (), r"1 keys are missing \(out.0.bias\)"),
    "extra": (
        lambda w: changed(w, label_emb__weight=torch.zeros(1)),
        (),
        r"1 keys are unexpected \(label_emb.weight\)",
    ),
    "shape": (lambda w: changed(w, out__0__bias=torch.zeros(4)), (), r"out.0.bias \(4,\), expected \(32,\)"),
    "levels": (
        lambda w: {key: value for key, value in w.items() if not key.startswith("input_blocks.5.")},
        (),
        "5 input_blocks do not make 3 levels",
    ),
    "scale shift": (without_scale_shift, (), "--use_scale_shift_norm False"),
    "updown": (lambda w: changed(w, input_blocks__2__0__op__weight=torch.zeros(1)), (), "--resblock_updown False"),
    "heads": (lambda w: w, ("--num_head_channels", 48), r"`num_head_channels` must divide .*\[64, 64, 64\]; got 48"),
    "labels": (lambda w: w, ("--colormap", "camvid"), "names 11 classes .*weights read 12.*set --instance_edges"),
}


@pytest.mark.parametrize("case", SDM_REFUSALS)
def test_wrong_sdm_checkpoint_is_refused_by_name(case, tmp_path, capsys):
    change, options, message = SDM_REFUSALS[case]
    torch.save(change(sdm_weights()), tmp_path / "wrong.pt")
    line = refused(capsys, tmp_path / "out", "--from", "sdm", tmp_path / "wrong.pt", *SDM_OPTIONS, *options)
    assert re.search(message, line), line


def test_size_of_sdms_images_is_asked_for_where_the_widths_do_not_tell(files, tmp_path, capsys):
    line = refused(capsys, tmp_path / "out", "--from", "sdm", files / "sdm.pt", "--num_head_channels", 16)
    assert "(1, 2, 2) x 32" in line
    assert "set --sample_size" in line


def edited(folder: Path, name: str, **changes) -> None:
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


KONZ_REFUSALS = {
    "no mask channel": (
        lambda f: edited(f, "unet/config.json", in_channels=3),
        "has 3 input channels and 3 output channels",
    ),
    "class": (
        lambda f: edited(f, "unet/config.json", _class_name="UNet2DConditionModel"),
        "UNet2DConditionModel; expected a UNet2DModel",
    ),
    "scheduler": (
        lambda f: edited(f, "scheduler/scheduler_config.json", _class_name="PNDMScheduler"),
        "names a PNDMScheduler; expected DDPMScheduler or DDIMScheduler",
    ),
    "no weights": (lambda f: (f / "unet/diffusion_pytorch_model.safetensors").unlink(), "holds no weights: expected"),
    "no config": (lambda f: (f / "unet/config.json").unlink(), "holds no config.json"),
    "wrong shapes": (lambda f: edited(f, "unet/config.json", block_out_channels=[8, 32]), "shapes differ"),
}


@pytest.mark.parametrize("case", KONZ_REFUSALS)
def test_wrong_konz_folder_is_refused_by_name(case, tmp_path, capsys):
    change, message = KONZ_REFUSALS[case]
    konz_folder(tmp_path / "konz")
    change(tmp_path / "konz")
    line = refused(capsys, tmp_path / "out", "--from", KONZ, tmp_path / "konz", "--num_classes", 4)
    assert re.search(message, line), line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--from", "paper", "none.pt"), "there is no checkpoint 'none.pt'"),
        (("--from", "paper", "."), "'.' is a folder; expected the checkpoint file"),
        (("--from", KONZ, "none", "--num_classes", 4), "'none' does not exist; expected the folder"),
        (("--from", KONZ, "{konz}"), "set --num_classes or --colormap"),
        (("--from", KONZ, "{konz}", "--num_classes", 4, "--colormap", "camvid"), "--num_classes is 4, and --colormap"),
        (("--from", KONZ, "{konz}", "--num_classes", 256), "1 to 255 classes; the weights read 256"),
        (("--from", KONZ, "{konz}", "--num_classes", 4, "--weights", "raw"), "--weights is no option of --from segm"),
        (("--from", "sdm", "{sdm}", "--weights", "raw"), "--weights is no option of --from sdm"),
        (("--from", "paper", "{paper}", "--instance_edges"), "--instance_edges is no option of --from paper"),
        (("--from", "paper", "{paper}", "--weights", "raw"), "one set of weights, .*omit --weights"),
        (("--from", "paper", "{paper}", "--colormap", "camvid"), "names 11 classes .*the weights read 19"),
        (("--from", "paper", "{paper}", "--colormap", "none.json"), "label set 'none.json' is no file"),
        (("--from", "paper", "{paper}", "--sample_size", "native"), "expected a number .*; got native"),
        (
            ("--from", "paper", "{paper}", "--sample_size", "15"),
            "sample_size is 15; this network generates multiples of 8",
        ),
        (
            ("--from", "paper", "{paper}", "--sample_size", "16x20"),
            r"is \(16, 20\); this network generates multiples of 8",
        ),
        (("--from", "paper", "{paper}", "--num_train_timesteps", 0), "--num_train_timesteps must be 1 or more"),
        (("--from", "paper", "{paper}", "--num_train_timesteps", 1), "must be 2 or more"),
    ],
)
def test_wrong_options_are_refused(words, message, files, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    places = {"paper": files / "paper.pt", "sdm": files / "sdm.pt", "konz": files / "konz"}
    line = refused(capsys, tmp_path / "out", *(str(word).format(**places) for word in words))
    assert re.search(message, line), line


def test_asked_for_average_that_is_not_there_is_refused(tmp_path, capsys):
    torch.save(lightning(None, paper_weights()), tmp_path / "raw.ckpt")
    line = refused(capsys, tmp_path / "out", "--from", "paper", tmp_path / "raw.ckpt", "--weights", "ema")
    assert "no keys of ema_model." in line


def test_nothing_half_written_stays_when_saving_fails(files, tmp_path, monkeypatch, capsys):
    def full(self, folder, **_):
        Path(folder, "unet").mkdir()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(MaskGuidedDDPMPipeline, "save_pretrained", full)
    assert "No space left" in refused(capsys, tmp_path / "out", "--from", "paper", files / "paper.pt")
