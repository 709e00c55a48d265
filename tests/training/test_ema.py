"""Averages of the weights: several lengths, in checkpoints, and the weights that lie beside the pipeline's own."""

import contextlib
import json
import shutil

import pytest
import torch
from diffusers.training_utils import EMAModel
from helpers.training_runs import losses, parse_training, tiny_settings, train_here, weights
from safetensors.torch import load_file

from semseg_diffusers import MaskGuidedDDPMPipeline, cli
from semseg_diffusers.data.dataset import load_pairs
from semseg_diffusers.evaluation.evaluate import load_generator
from semseg_diffusers.evaluation.settings import EvaluationSettings
from semseg_diffusers.hub.folders import weights_hash
from semseg_diffusers.hub.push import load_pipeline
from semseg_diffusers.training.checkpoints import list_checkpoints
from semseg_diffusers.training.networks import EMA, variant_name
from semseg_diffusers.training.settings import TrainingSettings
from semseg_diffusers.utils.files import write_json


DECAYS = (0.5, 0.2, 0.99)  # the warm-up has reached 0.65 after four steps
VARIANTS = ("raw", "ema_0_2", "ema_0_99")


@pytest.fixture(scope="module")
def run(toy, tmp_path_factory):
    """A run with three averages."""
    return train_here(tiny_settings(toy, tmp_path_factory.mktemp("runs") / "run", ema_decays=DECAYS))


def variant(run, name):
    return load_file(run / "unet" / f"diffusion_pytorch_model.{name}.safetensors")


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# The averages


@pytest.mark.parametrize(("warmup", "start_step"), [(True, 0), (False, 0), (True, 3)])
def test_each_length_equals_an_average_kept_alone(tiny_unet, warmup, start_step):
    settings = TrainingSettings(
        dataset="d", output_dir="o", ema_decays=DECAYS, ema_warmup=warmup, ema_start_step=start_step
    )
    averages = EMA(tiny_unet, settings)
    alone = [
        EMAModel(
            tiny_unet.parameters(),
            decay=decay,
            min_decay=0.0 if warmup else decay,
            update_after_step=start_step,
            use_ema_warmup=warmup,
            power=3 / 4,
            foreach=True,
        )
        for decay in DECAYS
    ]
    for _ in range(6):
        with torch.no_grad():
            for weight in tiny_unet.parameters():
                weight.add_(torch.randn_like(weight))
        averages.step(tiny_unet)
        for average in alone:
            average.step(tiny_unet.parameters())
    assert list(averages.averages) == [variant_name(decay) for decay in DECAYS]
    for ours, theirs in zip(averages.averages.values(), alone, strict=True):
        assert ours.cur_decay_value == theirs.cur_decay_value
        assert all(map(torch.equal, ours.shadow_params, theirs.shadow_params))
    assert not torch.equal(alone[0].shadow_params[0], alone[1].shadow_params[0])


def test_network_has_its_own_weights_back_after_the_average_was_applied(tiny_unet):
    averages = EMA(tiny_unet, TrainingSettings(dataset="d", output_dir="o"))
    with torch.no_grad():
        for weight in tiny_unet.parameters():
            weight.add_(1)
    before = {name: weight.clone() for name, weight in tiny_unet.state_dict().items()}
    with contextlib.suppress(KeyError), averages.swapped_in(tiny_unet):
        assert all(map(torch.equal, tiny_unet.parameters(), averages.first.shadow_params))
        assert not same(before, tiny_unet.state_dict())
        raise KeyError
    assert same(before, tiny_unet.state_dict())


@pytest.mark.parametrize(
    ("decay", "name"), [(0.9999, "ema_0_9999"), (0.5, "ema_0_5"), (1.0, "ema_1"), (1e-5, "ema_0_00001")]
)
def test_variants_have_names_that_diffusers_finds(decay, name):
    assert variant_name(decay) == name


# Settings


def parse(*words):
    return parse_training("--dataset", "d", "--output_dir", "o", *words)


def test_lengths_come_from_ema_decays_else_from_ema_decay(tmp_path):
    assert parse().ema_lengths == (0.9995,)
    assert parse("--ema_decay", "0.99").ema_lengths == (0.99,)
    assert parse("--preset", "paper").ema_lengths == (0.995,)
    several = parse("--ema_decays", "0.999", "0.9999")
    assert several.ema_lengths == (0.999, 0.9999)
    assert parse("--use_ema", "false").ema_lengths == ()
    write_json(tmp_path / "settings.json", several.to_dict())
    assert parse("--config", str(tmp_path / "settings.json")) == several


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--ema_decays", "0.9", "1.5"], "--ema_decays must be between 0 and 1; got 1.5"),
        (["--ema_decays", "0.9", "0.9"], "--ema_decays must differ; got 0.9 0.9"),
        (["--ema_decays", "0.9", "--use_ema", "false"], "--ema_decays needs --use_ema true"),
        (["--ema_decays", "long"], "--ema_decays: expected a number"),
    ],
)
def test_bad_lengths_are_refused(words, message):
    with pytest.raises(ValueError, match=message):
        parse(*words)


# Runs


def test_pipeline_has_the_first_average_and_the_others_lie_beside_it(toy, run, tmp_path):
    last = run / "checkpoint-4"
    assert same(variant(run, "raw"), load_file(last / "model.safetensors"))
    for decay in DECAYS:  # each as if it had been the only one
        alone = train_here(tiny_settings(toy, tmp_path / str(decay), ema_decay=decay))
        assert same(weights(alone), weights(run) if decay == DECAYS[0] else variant(run, variant_name(decay)))
        assert same(variant(alone, "raw"), variant(run, "raw"))
        assert sorted(path.name for path in (alone / "unet").glob("*.safetensors")) == [
            "diffusion_pytorch_model.raw.safetensors",
            "diffusion_pytorch_model.safetensors",
        ]
        kept = last / f"{'ema' if decay == DECAYS[0] else variant_name(decay)}.safetensors"
        assert same(load_file(alone / "checkpoint-4" / "ema.safetensors"), load_file(kept))
    card = (run / "README.md").read_text()
    assert (
        "decay up to 0.5; by `variant=` also `raw` (the last step's), `ema_0_2` (decay up to 0.2), `ema_0_99`" in card
    )


def test_run_without_averages_has_its_own_weights_alone(toy, tmp_path):
    alone = train_here(tiny_settings(toy, tmp_path / "run", use_ema=False, max_train_steps=1))
    assert [path.name for path in (alone / "unet").glob("*.safetensors")] == ["diffusion_pytorch_model.safetensors"]


def test_killed_and_resumed_run_equals_the_straight_one_with_all_options_on(toy, tmp_path):
    changes = {
        "ema_decays": DECAYS, "class_loss_weighting": True, "rescale_betas_zero_snr": True,
        "gradient_accumulation_steps": 2, "preview_steps": 1, "preview_masks": 1, "preview_samples": 1,
        "preview_inference_steps": 1, "perceptual_weight": 0.1,
    }  # fmt: skip
    straight = train_here(tiny_settings(toy, tmp_path / "straight", **changes))
    pieces = train_here(tiny_settings(toy, tmp_path / "pieces", **changes))
    shutil.rmtree(pieces / "checkpoint-4")  # as after a kill between step 2 and step 4
    for path in (pieces / "unet").glob("*.safetensors"):
        path.unlink()
    train_here(tiny_settings(toy, pieces, resume_from_checkpoint="latest", **changes))
    assert losses(straight) == losses(pieces)
    assert same(weights(straight), weights(pieces))
    for name in VARIANTS:
        assert same(variant(straight, name), variant(pieces, name))
    files = [sorted(path.name for path in list_checkpoints(one)[-1].iterdir()) for one in (straight, pieces)]
    assert files[0] == files[1]
    assert {"ema.safetensors", "ema_0_2.safetensors", "ema_0_99.safetensors"} <= set(files[0])
    for name in files[0]:
        if name.endswith(".safetensors"):
            assert same(*(load_file(list_checkpoints(one)[-1] / name) for one in (straight, pieces)))
    preview = "previews/step-0000004.png"
    assert (straight / preview).read_bytes() == (pieces / preview).read_bytes()


def test_run_is_not_resumed_with_other_averages(toy, run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "copy")
    with pytest.raises(ValueError, match=r"other settings: --ema_decays \[0.5, 0.2, 0.99\] \(now \[0.5\]\)"):
        train_here(tiny_settings(toy, copy, ema_decays=(0.5,), resume_from_checkpoint="latest"))


# Loading


LOAD = """
import json, sys
from diffusers import DiffusionPipeline
run, ours = sys.argv[1], sys.argv[2] == "ours"
how = {} if ours else {"custom_pipeline": run, "trust_remote_code": True}
if ours:
    from semseg_diffusers import MaskGuidedDDPMPipeline as DiffusionPipeline
sums = {}
for variant in (None, "raw", "ema_0_2", "ema_0_99"):
    unet = DiffusionPipeline.from_pretrained(run, variant=variant, **how).unet
    sums[str(variant)] = sum(weight.double().sum().item() for weight in unet.parameters())
print(json.dumps(sums))
"""


@pytest.mark.parametrize("how", [pytest.param("ours", marks=pytest.mark.slow), "without the package"])
@pytest.mark.slow
def test_variants_load_in_a_clean_process(run, clean_process, how):
    done = clean_process(LOAD, run, how.split()[0], without_package=how != "ours")
    sums = json.loads(done.stdout.strip().splitlines()[-1])
    files = {"None": weights(run), **{name: variant(run, name) for name in VARIANTS}}
    expected = {name: sum(weight.double().sum().item() for weight in file.values()) for name, file in files.items()}
    assert sums == pytest.approx(expected)
    assert len({round(value, 6) for value in expected.values()}) == 4


def test_pipeline_without_a_variant_is_the_first_average(run):
    assert same(MaskGuidedDDPMPipeline.from_pretrained(run).unet.state_dict(), weights(run))
    assert same(load_pipeline(run, variant="raw").unet.state_dict(), variant(run, "raw"))


@pytest.mark.parametrize("name", ["fp16", "ema_0_9", "ema", "safetensors"])
def test_weights_that_are_not_there_are_refused_with_those_that_are(run, name):
    with pytest.raises(ValueError, match=f"holds no weights `{name}`; it holds ema_0_2, ema_0_99, raw"):
        load_pipeline(run, variant=name)


def test_weights_of_a_folder_that_has_its_own_only_are_refused(run, tmp_path):
    MaskGuidedDDPMPipeline.from_pretrained(run).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds no weights `raw`; it holds only its own, without --variant"):
        load_pipeline(tmp_path, variant="raw")


def test_evaluation_draws_with_a_variant_and_records_it(run, toy):
    settings = EvaluationSettings(dataset=str(toy), output="o", model=str(run), variant="raw")
    pipe, _ = load_generator(settings, load_pairs(toy, "val"), "cpu")
    assert same(pipe.unet.state_dict(), variant(run, "raw"))
    assert settings.record()["variant"] == "raw"


def test_generate_takes_a_variant_and_says_so(run, toy, tmp_path):
    words = ["generate", "--model", str(run), "--masks", str(toy / "val" / "masks"), "--num_inference_steps", "1"]
    words += ["--contact_sheet", "0", "--device", "cpu"]
    for name in (None, "raw"):
        chosen = [] if name is None else ["--variant", name]
        assert cli.main([*words, "--output", str(tmp_path / str(name)), *chosen]) == 0
    records = [json.loads((tmp_path / name / "generation.json").read_text()) for name in ("None", "raw")]
    assert [record["variant"] for record in records] == [None, "raw"]
    assert [record["revision"] for record in records] == [
        weights_hash(weights(run)),
        weights_hash(variant(run, "raw")),
    ]
    images = [
        [path.read_bytes() for path in sorted((tmp_path / name / "images").iterdir())] for name in ("None", "raw")
    ]
    assert images[0] != images[1]
