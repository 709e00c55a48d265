"""The Hub both ways, over real HTTP: what a push uploads and says, how it loads again, and what its errors tell."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pyarrow.parquet as parquet
import pytest
import torch
import yaml
from helpers.cards import write_card
from helpers.evaluation_results import evaluation_results
from helpers.loading import DIFFUSERS_CLASS, DRAW, OUR_CLASS, REMOTE_CODE, draw, tiny_pipeline
from PIL import Image
from safetensors.torch import load_file, save_file

from semseg_diffusers import LabelSet, MaskGuidedImg2ImgPipeline, MaskGuidedInpaintPipeline, cli
from semseg_diffusers.data import dataset_format
from semseg_diffusers.data.dataset import load_pairs
from semseg_diffusers.generation.generate import GenerationSettings, generate_dataset
from semseg_diffusers.hub import cards
from semseg_diffusers.hub.folders import weights_hash
from semseg_diffusers.hub.push import load_pipeline
from semseg_diffusers.reports.findings import results_commands
from semseg_diffusers.toy.scenes import draw_scene, write_toy_dataset
from semseg_diffusers.training.settings import TrainingSettings
from semseg_diffusers.utils.files import write_json
from semseg_diffusers.utils.hub_errors import HubError


ROOT = Path(__file__).resolve().parents[2]
BDD = LabelSet.from_preset("bdd100k")

# Reads one job a line from stdin, runs it, answers in one line on stdout. The retries' waits are left out.
WORKER = """
import contextlib, io, json, logging, os, sys, types
import huggingface_hub.utils._http as http
from semseg_diffusers import cli
http.time = types.SimpleNamespace(sleep=lambda seconds: None)
logging.basicConfig(stream=sys.stderr, format="%(message)s")
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
for line in sys.stdin:
    job = json.loads(line)
    os.environ["HF_TOKEN"] = job["token"]
    answer = {"value": None, "error": None, "causes": []}
    out, err = io.StringIO(), io.StringIO()
    logging.getLogger().handlers[0].stream = err
    names = {"arguments": job["arguments"], "value": None}
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            exec(job["code"], names)
        except (Exception, SystemExit) as error:
            answer["error"] = f"{type(error).__name__}: {error}"
            while error is not None:
                answer["causes"] += [kind.__name__ for kind in type(error).__mro__]
                error = error.__cause__
    answer |= {"value": names["value"], "out": out.getvalue(), "err": err.getvalue()}
    print(json.dumps(answer), file=answers, flush=True)
"""
COMMAND = "from semseg_diffusers import cli\nvalue = cli.main(arguments)"


class Client:
    """A process that talks to the Hub of the tests and runs one job after the other: importing torch takes seconds."""

    def __init__(self, environment: dict[str, str], folder: Path):
        self._log = (folder / "worker.log").open("w")
        self._process = subprocess.Popen(
            [sys.executable, "-c", WORKER],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )

    def run(self, code: str, *arguments: object, token: str = "hf_alice") -> SimpleNamespace:
        """Run code that finds `arguments` and may set `value`; an error comes back as text."""
        job = {"code": code, "arguments": [str(argument) for argument in arguments], "token": token}
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, f"the client died: {Path(self._log.name).read_text()}"
        return SimpleNamespace(**json.loads(line))

    def command(self, *words: object, token: str = "hf_alice") -> SimpleNamespace:
        """Run `semseg-diffusers WORDS` and expect it to work."""
        answer = self.run(COMMAND, *words, token=token)
        assert (answer.value, answer.error) == (0, None), answer.err
        return answer

    def refused(self, *words: object, token: str = "hf_alice") -> str:
        """Run `semseg-diffusers WORDS`, expect exit code 2, and return its error, a list of several in one line."""
        answer = self.run(COMMAND, *words, token=token)
        assert (answer.value, answer.error, answer.out) == (2, None, ""), answer
        lines = answer.err.splitlines()
        (start,) = [number for number, line in enumerate(lines) if line.startswith("error: ")]
        return " ".join(line.strip() for line in lines[start:])

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._process.stdout.close()
        self._log.close()


@pytest.fixture(scope="module")
def client(hub, tmp_path_factory):
    folder = tmp_path_factory.mktemp("client")
    worker = Client(hub.environment(folder / "home"), folder)
    yield worker
    worker.close()


@pytest.fixture(scope="module")
def pipeline():
    return tiny_pipeline("unet_mask_guided")


@pytest.fixture(scope="module")
def saved_run(pipeline, tmp_path_factory):
    """A run folder as training leaves it, with what must not go along."""
    run = tmp_path_factory.mktemp("runs") / "streets run"
    pipeline.save_pretrained(run)
    settings = TrainingSettings(dataset="/home/someone/data/toy16", output_dir="/home/someone/runs/streets")
    write_card(run, settings, "toy")
    write_json(run / "settings.json", settings.to_dict())
    (run / "log.jsonl").write_text('{"step": 4, "loss": 0.5}\n')
    for step in (2, 4):
        Image.new("RGB", (8, 8), (step, 0, 0)).save(_parent(run / "previews" / f"step-{step:07d}.png"))
    _parent(run / "checkpoint-4" / "optimizer.bin").write_bytes(b"state")
    _parent(run / "logs" / "events.out").write_bytes(b"events")
    (run / "previews" / ".step-0000006.png.writing").write_bytes(b"half")
    (run / "unet" / "config.json.tmp-123").write_text("half")
    (run / ".cache").write_text("hidden")
    return run


def test_a_card_lists_the_attributes_that_the_network_knows(run):
    known = {"timeofday": ["day", "night"], "weather": ["clear", "rainy"]}
    config_file = run / "unet" / "config.json"
    config = json.loads(config_file.read_text())
    write_json(config_file, {**config, "attributes": known})
    card = cards.new_model_card(run, "t")
    assert 'pipe("mask.png", attributes={"timeofday": "day"})`.\n\n| attribute | values |\n|---|---|\n' in card
    assert "\n| timeofday | day, night |\n| weather | clear, rainy |\n\n## Data\n" in card
    write_json(config_file, {**config, "attributes": None})
    plain = cards.new_model_card(run, "t")
    assert "ttributes" not in plain
    assert "|\n\n## Data\n" in plain


@pytest.fixture
def run(saved_run, tmp_path):
    """A copy of the run folder that a test may change."""
    return shutil.copytree(saved_run, tmp_path / "streets run")


@pytest.fixture(scope="module")
def pushed(hub, client, saved_run, tmp_path_factory):
    """The run, pushed once as alice/streets; returns the answer of the command."""
    copy = shutil.copytree(saved_run, tmp_path_factory.mktemp("pushed") / "streets run")
    return client.command("push", "--model", copy, "--repo_id", "alice/streets")


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return write_toy_dataset(tmp_path_factory.mktemp("data") / "toy16", num_train=3, num_val=2, size=(16, 16))


@pytest.fixture(scope="module")
def generated(pipeline, saved_run, tmp_path_factory):
    """Four images of two masks, as `generate` writes them."""
    folder = tmp_path_factory.mktemp("generated")
    for number in range(2):
        ids = draw_scene(number, (16, 16))[1]
        BDD.decode(ids).save(_parent(folder / "masks" / f"scene{number}.png"))
    settings = GenerationSettings(num_inference_steps=2)
    return generate_dataset(pipeline, folder / "masks", folder / "new", settings, num_images_per_mask=2).output


@pytest.fixture
def results_file(pipeline, tmp_path):
    """What `evaluate` writes, of images of this pipeline's weights."""
    path = tmp_path / "toy16" / "results.json"
    path.parent.mkdir()
    path.write_text(json.dumps(evaluation_results(weights_hash(pipeline.unet.state_dict()))))
    return path


def _parent(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def card_of(repo) -> str:
    return repo.files()["README.md"].data.decode()


# What a push uploads


def test_a_push_uploads_the_pipeline_and_nothing_that_is_of_no_use_to_others(hub, pushed, saved_run):
    repo = hub.model("alice/streets")
    assert set(repo.files()) == {
        ".gitattributes",
        "README.md",
        "log.jsonl",
        "guidance.py",
        "latents.py",
        "mask_guided_mixin.py",
        "mask_inputs.py",
        "model_index.json",
        "pipeline.py",
        "portable.py",
        "previews/step-0000004.png",
        "scheduler/scheduler_config.json",
        "scheduler_trial.py",
        "settings.json",
        "text_inputs.py",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "unet/unet_mask_guided.py",
    }
    weights = repo.files()["unet/diffusion_pytorch_model.safetensors"]
    assert weights.data == (saved_run / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    assert pushed.out == f"pushed: {hub.url}/alice/streets/commit/{repo.branches['main']}\n"
    assert len(repo.commits) == 2  # all of it in one commit after the first


VARIANT = """
from pathlib import Path
from semseg_diffusers.hub.folders import weights_hash
from semseg_diffusers.hub.push import load_pipeline
variant = arguments[1] if arguments[1:] else None
pipe = load_pipeline(arguments[0], variant=variant)
folder = Path(pipe.unet.config._name_or_path)
value = [weights_hash(pipe.unet.state_dict()), sorted(path.name for path in folder.glob("*.safetensors"))]
"""


def test_variants_go_along_and_are_downloaded_where_asked_for(hub, client, run):
    weights = load_file(run / "unet" / "diffusion_pytorch_model.safetensors")
    raw = {name: value + 1 for name, value in weights.items()}
    save_file(raw, run / "unet" / "diffusion_pytorch_model.raw.safetensors", metadata={"format": "pt"})
    client.command("push", "--model", run, "--repo_id", "alice/variants")
    assert "unet/diffusion_pytorch_model.raw.safetensors" in hub.model("alice/variants").files()
    plain = client.run(VARIANT, "alice/variants")
    assert plain.value == [weights_hash(weights), ["diffusion_pytorch_model.safetensors"]], plain.error
    both = ["diffusion_pytorch_model.raw.safetensors", "diffusion_pytorch_model.safetensors"]
    assert client.run(VARIANT, "alice/variants", "raw").value == [weights_hash(raw), both]
    assert client.run(VARIANT, "alice/variants").value == [weights_hash(weights), both]
    refused = client.run(VARIANT, "alice/variants", "ema_0_9")
    assert refused.error == "ValueError: 'alice/variants' holds no weights `ema_0_9`; its card lists those it holds."
    count = f"{sum(value.numel() for value in weights.values()):,} parameters"
    assert count in card_of(hub.model("alice/variants"))
    (run / "unet" / "diffusion_pytorch_model.raw.safetensors").unlink()
    client.command("push", "--model", run, "--repo_id", "alice/variants")
    assert "unet/diffusion_pytorch_model.raw.safetensors" not in hub.model("alice/variants").files()


def test_no_path_of_the_machine_is_published(hub, pushed):
    for name, blob in hub.model("alice/streets").files().items():
        assert b"/home/someone" not in blob.data, name
    settings = json.loads(hub.model("alice/streets").files()["settings.json"].data)
    assert (settings["dataset"], settings["output_dir"]) == ("toy16", "streets")


def test_the_card_names_repository_data_licence_use_and_limits(hub, client, pushed):
    card = card_of(hub.model("alice/streets"))
    data = cards.metadata(card)
    assert (data["license"], data["library_name"], data["pipeline_tag"]) == (
        "apache-2.0", "diffusers", "image-to-image",
    )  # fmt: skip
    assert card.splitlines()[card.splitlines().index("---", 1) + 2] == "# streets"
    assert 'MaskGuidedDDPMPipeline.from_pretrained("alice/streets")' in card
    assert 'x = "alice/streets"' in card
    assert "6 pairs of `toy16` (split `train`) at 16 x 16 pixels.\nDrawn toy scenes: no licence of others." in card
    assert "| 0 | road | 128, 64, 128 |" in card
    assert "## Intended use and limits" in card
    assert "![mask, samples, image](previews/step-0000004.png)" in card
    assert "images of its data (licence: apache-2.0)" in card
    assert "None measured by the training run" in card
    assert "{{" not in card
    assert (
        client.run("from huggingface_hub import ModelCard; ModelCard.load('alice/streets').validate()").error is None
    )


def test_a_card_that_the_hub_refuses_is_refused_before_anything_is_uploaded(hub, client, run):
    card = (run / "README.md").read_text()
    (run / "README.md").write_text(card.replace("license: apache-2.0", "license: [Apache, MIT]"))
    uploads = len(hub.uploads)
    assert '"license" must be a string' in client.refused("push", "--model", run, "--repo_id", "alice/badcard")
    assert len(hub.uploads) == uploads
    (run / "README.md").write_text(card.replace("license: apache-2.0", "license: [Apache"))
    assert "no valid YAML" in client.refused("push", "--model", run, "--repo_id", "alice/badcard")


def test_what_a_user_writes_into_the_card_stays_here_and_on_the_hub(hub, client, run):
    card = (run / "README.md").read_text().replace("license: apache-2.0\n", "")
    (run / "README.md").write_text(card + "\nTrained for our block.\n")
    answer = client.command("push", "--model", run, "--repo_id", "alice/edited")
    repo = hub.model("alice/edited")
    assert "names no licence: write `license:`" in answer.err
    assert not [name for name in repo.files() if name.startswith("previews/")]  # it shows data of unknown licence
    assert "Trained for our block." in card_of(repo)
    # now the licence is filled in on the Hub's page
    there = card_of(repo).replace("library_name:", "license: mit\nlibrary_name:")
    repo.commit("main", {**repo.files(), "README.md": type(repo.files()["README.md"])(there.encode(), False)}, "edit")
    (run / "README.md").write_text((run / "README.md").read_text().replace("for our block", "for our street"))
    answer = client.command("push", "--model", run, "--repo_id", "alice/edited")
    assert cards.metadata(card_of(repo))["license"] == "mit"
    assert "Trained for our street." in card_of(repo)
    assert (run / "README.md").read_text() == card_of(repo)
    assert "had other text; it stays in its history" in answer.err


def test_results_fill_the_card_and_its_metadata_and_stay_at_the_next_push(hub, client, run, results_file):
    client.command("push", "--model", run, "--repo_id", "alice/scored", "--results", results_file)
    repo = hub.model("alice/scored")
    card = card_of(repo)
    assert "| mean IoU | higher | 0.125 | 0.250 | 0.500 |" in card
    assert "| Fréchet distance to val (judge) | lower | 1.50 | 4.50 | – |" in card
    assert "Not in the masks, so not in the mean: sky." in card
    assert (
        "semseg-diffusers generate --model alice/scored --masks toy16/val/masks --output new --num_images_per_mask 2 "
        "--scheduler DDIMScheduler --num_inference_steps 2 --guidance_scale 3.0 --height 16 --width 16 "
        "--dtype float32 --seed 0\n"
        "semseg-diffusers evaluate --dataset toy16 --generated new --output evaluation --split val --segmenter judge "
        "--features judge --seed 0\n"
    ) in card
    (entry,) = cards.metadata(card)["model-index"]
    (result,) = entry["results"]
    assert (entry["name"], result["dataset"]["name"], result["dataset"]["split"]) == ("scored", "toy16", "val")
    assert {metric["type"]: metric["value"] for metric in result["metrics"]} == {
        "mean_iou": 0.25,
        "pixel_accuracy": 0.5,
        "frechet_distance": 4.5,
        "kernel_distance": 0.5,
    }
    assert json.loads(repo.files()["results/toy16.json"].data)["settings"]["dataset"] == "toy16"
    code = "from huggingface_hub import ModelCard\nvalue = len(ModelCard.load('alice/scored').data.eval_results)"
    assert client.run(code).value == 4

    client.command("push", "--model", run, "--repo_id", "alice/scored")
    assert card_of(repo) == card


def test_the_commands_on_the_card_are_ones_that_the_command_line_takes(results_file, monkeypatch):
    monkeypatch.setattr("sys.stderr", sys.__stderr__)
    for line in results_commands(next(iter(cards.read_scores([results_file]).values())), "alice/scored"):
        command, *words = line.split()[1:]
        assert int(cli.command_parser(command).parse_args(words).seed) == 0


def test_results_of_other_weights_or_no_results_are_refused(client, run, results_file, tmp_path):
    results = json.loads(results_file.read_text())
    results["generation"]["revision"] = "sha256:0123456789abcdef"
    results_file.write_text(json.dumps(results))
    push = ("push", "--model", run, "--repo_id", "alice/scored", "--results")
    assert re.search(r"for other weights \(sha256:0123456789abcdef\) than", client.refused(*push, results_file))
    results["generation"] |= {"revision": "4be1cdaeb204077e87d04438c0e4457972f7a3b9", "variant": "raw"}
    results_file.write_text(json.dumps(results))
    assert "is for the weights `raw`; " in client.refused(*push, results_file)
    results_file.write_text('{"agreement": {}, "settings": {}}')
    assert "agreement.shuffled, agreement.generated, agreement.real is missing" in client.refused(*push, results_file)
    assert "is not valid JSON" in client.refused(*push, run / "README.md")
    assert "No such file" in client.refused(*push, tmp_path / "none.json")


def test_the_hash_of_weights_is_the_revision_that_generate_writes_down(pipeline, generated):
    record = json.loads((generated / "generation.json").read_text())
    assert weights_hash(pipeline.unet.state_dict()) == record["revision"]


def test_a_folder_that_was_only_saved_gets_a_card_with_what_it_knows(hub, client, pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "plain")
    answer = client.command(
        "push", "--model", tmp_path / "plain", "--repo_id", "alice/plain", "--commit_message", "Hi"
    )
    repo = hub.model("alice/plain")
    assert repo.titles[-1] == "Hi"
    parameters = sum(weight.numel() for weight in pipeline.unet.parameters())
    assert f"| network | MaskGuidedUNet2DModel, {parameters:,} parameters |" in card_of(repo)
    assert "| prediction, schedule | epsilon, linear, 1000 timesteps |" in card_of(repo)
    assert "The training data is not recorded beside these weights: say it here" in card_of(repo)
    assert "names no licence" in answer.err


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda run: shutil.rmtree(run), "there is no folder"),
        (
            lambda run: (run / "model_index.json").unlink(),
            "holds no model_index.json.*--resume_from_checkpoint latest",
        ),
        (lambda run: (run / "unet" / "unet_mask_guided.py").unlink(), "unet/unet_mask_guided.py is missing"),
        (lambda run: (run / "unet" / "diffusion_pytorch_model.safetensors").unlink(), r"model.safetensors is missing"),
        (
            lambda run: (run / "model_index.json").write_text('{"_class_name": "DDPMPipeline"}'),
            "holds a DDPMPipeline, no pipeline of this package",
        ),
    ],
)
def test_a_folder_that_is_no_whole_pipeline_of_ours_is_refused_by_what_is_missing(hub, client, run, spoil, message):
    spoil(run)
    requests = len(hub.requests)
    assert re.search(message, client.refused("push", "--model", run, "--repo_id", "alice/refused"))
    assert len(hub.requests) == requests


def test_a_second_push_sends_only_what_changed_and_takes_away_what_is_gone(hub, client, run):
    push = ("push", "--model", run, "--repo_id", "alice/again")
    client.command(*push)
    repo, uploads = hub.model("alice/again"), len(hub.uploads)
    client.command(*push)
    assert (len(repo.commits), len(hub.uploads)) == (2, uploads)
    user_file = type(repo.files()["README.md"])(b"mine", False)
    stale = {"unet/unet_paper.py": user_file, "previews/step-0000001.png": user_file, "notes.txt": user_file}
    repo.commit("main", {**repo.files(), **stale}, "edit")
    Image.new("RGB", (8, 8), (6, 0, 0)).save(run / "previews" / "step-0000006.png")
    client.command(*push)
    assert len(hub.uploads) == uploads + 1
    assert "notes.txt" in repo.files()
    assert {name for name in repo.files() if name.startswith(("previews/", "unet/"))} == {
        "previews/step-0000006.png",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "unet/unet_mask_guided.py",
    }


def test_code_that_a_folder_does_not_hold_is_added_by_the_push(hub, client, run, pushed):
    for path in [*run.rglob("*.py")]:
        path.unlink()
    client.command("push", "--model", run, "--repo_id", "alice/codeless")
    code = {name: blob.data for name, blob in hub.model("alice/streets").files().items() if name.endswith(".py")}
    assert len(code) == 9
    files = hub.model("alice/codeless").files()
    assert {name: files[name].data for name in code} == code


# Loading by repository id, each way in a process of its own


@pytest.fixture(scope="module")
def published(hub, client, pushed, saved_run, tmp_path_factory):
    """alice/streets with a branch of other weights, a private copy, and what each of them draws."""
    folder = tmp_path_factory.mktemp("published")
    other = tiny_pipeline("unet_mask_guided")
    with torch.no_grad():
        for weight in other.unet.parameters():
            weight.mul_(1.5)
    other.save_pretrained(folder / "other")
    client.command("push", "--model", folder / "other", "--repo_id", "alice/streets", "--revision", "bright")
    client.command("push", "--model", folder / "other", "--repo_id", "alice/secret", "--private")
    repo = hub.model("alice/streets")
    return SimpleNamespace(main=repo.branches["main"], bright=repo.branches["bright"], other=draw(other))


def test_our_class_loads_main_a_branch_a_commit_and_a_private_repository(
    hub, pipeline, published, tmp_path, clean_process
):
    code = OUR_CLASS + DRAW
    for name, argument in (
        ("branch", '"bright"'),
        ("commit", f'"{published.bright}"'),
        ("first", f'"{published.main}"'),
    ):
        code += f"\npipe = MaskGuidedDDPMPipeline.from_pretrained(sys.argv[1], revision={argument})"
        code += DRAW.replace("sys.argv[2]", f"sys.argv[2] + '{name}'")
    code += "\npipe = MaskGuidedDDPMPipeline.from_pretrained('alice/secret')"
    code += DRAW.replace("sys.argv[2]", "sys.argv[2] + 'private'")
    clean_process(code, "alice/streets", tmp_path / "images", environment=hub.environment(tmp_path / "home"))
    for name, expected in (
        ("", draw(pipeline)), ("branch", published.other), ("commit", published.other), ("first", draw(pipeline)),
        ("private", published.other),
    ):  # fmt: skip
        assert torch.equal(torch.load(tmp_path / f"images{name}"), expected), name


def test_diffusers_class_loads_with_the_package_imported_and_without_trust_or_token(
    hub, pipeline, published, tmp_path, clean_process
):
    environment = hub.environment(tmp_path / "home", token=None)
    clean_process(DIFFUSERS_CLASS + DRAW, "alice/streets", tmp_path / "images", environment=environment)
    assert torch.equal(torch.load(tmp_path / "images"), draw(pipeline))


@pytest.mark.parametrize("load", [OUR_CLASS, DIFFUSERS_CLASS], ids=["our_class", "diffusers_class"])
@pytest.mark.slow
def test_a_repository_without_code_loads_with_the_package(load, hub, pipeline, pushed, tmp_path, clean_process):
    files = {name: blob.data for name, blob in hub.model("alice/streets").files().items() if not name.endswith(".py")}
    hub.add_repo("alice/bare", files)
    clean_process(load + DRAW, "alice/bare", tmp_path / "images", environment=hub.environment(tmp_path / "home"))
    assert torch.equal(torch.load(tmp_path / "images"), draw(pipeline))


def test_remote_code_loads_without_the_package(hub, pipeline, published, tmp_path, clean_process):
    same_weights = "\ntorch.save(pipe.unet.state_dict(), sys.argv[2] + 'weights')"
    clean_process(
        REMOTE_CODE + DRAW + same_weights,
        "alice/streets",
        tmp_path / "images",
        tmp_path / "again",
        without_package=True,
        environment=hub.environment(tmp_path / "home"),
    )
    assert torch.equal(torch.load(tmp_path / "images"), draw(pipeline))
    weights = torch.load(tmp_path / "imagesweights")
    assert weights.keys() == pipeline.unet.state_dict().keys()
    assert all(torch.equal(weights[name], value) for name, value in pipeline.unet.state_dict().items())


def test_a_student_is_pushed_and_samples_in_its_steps_without_the_package(hub, client, tmp_path, clean_process):
    checkpoint = Path(__file__).resolve().parents[2] / "checkpoints" / "camvid128-turbo"
    student = shutil.copytree(checkpoint, tmp_path / "student")  # a push writes into its card
    client.command("push", "--model", student, "--repo_id", "alice/turbo")
    draw_it = "ids = torch.arange(128 * 128).reshape(1, 128, 128) // 256 % 11\n"
    draw_it += "images = pipe(ids, output_type='pt', generator=torch.Generator().manual_seed(0)).images\n"
    code = f"{REMOTE_CODE}{draw_it}torch.save((images, pipe.num_timesteps), sys.argv[2])"
    environment = hub.environment(tmp_path / "home")
    paths = (tmp_path / "images", tmp_path / "again")
    clean_process(code, "alice/turbo", *paths, without_package=True, environment=environment)
    names = {"pipe": load_pipeline(student), "torch": torch}
    exec(draw_it, names)
    images, steps = torch.load(tmp_path / "images")
    assert steps == 4
    assert torch.allclose(images, names["images"], atol=1e-4)


def test_push_to_hub_of_the_pipeline_itself_works_and_loads(hub, client, pipeline, saved_run, tmp_path):
    code = "from semseg_diffusers import MaskGuidedDDPMPipeline\nimport sys, torch\nsys.argv = ['', *arguments]\n"
    code += "MaskGuidedDDPMPipeline.from_pretrained(arguments[0]).push_to_hub('alice/direct')\n"
    code += "pipe = MaskGuidedDDPMPipeline.from_pretrained('alice/direct')" + DRAW
    assert client.run(code, saved_run, tmp_path / "images").error is None
    assert torch.equal(torch.load(tmp_path / "images"), draw(pipeline))
    assert "unet/unet_mask_guided.py" in hub.model("alice/direct").files()
    # and the repository it made is one that `push` takes for ours
    client.command("push", "--model", saved_run, "--repo_id", "alice/direct")


@pytest.mark.slow
def test_pipelines_that_edit_are_pushed_and_load_without_the_package(hub, client, pipeline, tmp_path, clean_process):
    code = "import sys, torch\nfrom diffusers import DiffusionPipeline\n"
    expected = {}
    for kind, call in (
        (MaskGuidedImg2ImgPipeline, "photo, ids, strength=0.5"),
        (MaskGuidedInpaintPipeline, "photo, ids, ids[0] < 9"),
    ):
        name = kind.__name__
        pipe = kind.from_pipe(pipeline)
        pipe.save_pretrained(tmp_path / name)
        client.command("push", "--model", tmp_path / name, "--repo_id", f"alice/{name}")
        assert 'pipe("photo.png", ' in card_of(hub.model(f"alice/{name}"))
        code += f"x = 'alice/{name}'\n"
        code += "pipe = DiffusionPipeline.from_pretrained(x, trust_remote_code=True, custom_pipeline=x)\n"
        draw_it = "ids = torch.arange(256).reshape(1, 16, 16) % 19\nphoto = torch.zeros(3, 16, 16)\n"
        draw_it += f"images = pipe({call}, num_inference_steps=2, output_type='pt', "
        draw_it += "generator=torch.Generator().manual_seed(0)).images\n"
        code += f"{draw_it}torch.save(images, sys.argv[1] + '{name}')\n"
        names = {"pipe": pipe, "torch": torch}
        exec(draw_it, names)
        expected[name] = names["images"]
    environment = hub.environment(tmp_path / "home")
    clean_process(code, tmp_path / "images", without_package=True, environment=environment)
    for name, images in expected.items():
        assert torch.allclose(torch.load(tmp_path / f"images{name}"), images, atol=1e-4)


# Data sets


@pytest.fixture(scope="module")
def pushed_sets(hub, client, toy, generated):
    client.command("push", "--dataset", toy, "--repo_id", "alice/toy")
    client.command("push", "--dataset", generated, "--repo_id", "lab/made", "--private", "--revision", "first")


def test_a_data_set_comes_back_from_the_hub_pixel_for_pixel(hub, pushed_sets, toy, generated, tmp_path, clean_process):
    code = """
import sys, torch
from semseg_diffusers.data.dataset import load_pairs, read_record
sets = {
    "train": load_pairs("alice/toy"),
    "val": load_pairs("alice/toy", "val", revision=sys.argv[2]),
    "made": load_pairs("lab/made", revision="first"),
}
loaded = {name: {"pairs": list(pairs), "labels": pairs.labels.to_config()} for name, pairs in sets.items()}
torch.save({**loaded, "format": read_record("alice/toy")["format"], "none": read_record("lab/made")}, sys.argv[1])
"""
    commit = hub.dataset("alice/toy").branches["main"]
    clean_process(code, tmp_path / "pairs", commit, environment=hub.environment(tmp_path / "home"))
    loaded = torch.load(tmp_path / "pairs")
    assert (loaded["format"], loaded["none"]) == ("toy", {})
    for name, folder, split in (("train", toy, "train"), ("val", toy, "val"), ("made", generated, "train")):
        here = load_pairs(folder, split, cache_dir=tmp_path / "cache")
        there = loaded[name]["pairs"]
        assert LabelSet.from_config(loaded[name]["labels"]) == here.labels
        assert [pair["stem"] for pair in there] == here.stems
        for pair, expected in zip(there, here, strict=True):
            assert torch.equal(pair["mask"], expected["mask"])
            assert torch.equal(pair["image"], expected["image"])
    assert not np.array_equal(loaded["train"]["pairs"][0]["mask"], loaded["train"]["pairs"][1]["mask"])


def test_any_data_set_of_the_hub_loads_with_its_columns_named_and_a_label_set_given(hub, client, tmp_path):
    photo, ids, _ = draw_scene(5, (16, 16))
    features = datasets.Features({"photo": datasets.Image(), "label": datasets.Image()})
    table = datasets.Dataset.from_dict(
        {"photo": [photo], "label": [BDD.decode(ids).convert("RGB")]}, features=features
    )
    table.to_parquet(tmp_path / "train.parquet")
    hub.add_repo("carol/photos", {"train.parquet": (tmp_path / "train.parquet").read_bytes()}, kind="dataset")
    load = (
        "import torch\nfrom semseg_diffusers import LabelSet\nfrom semseg_diffusers.data.dataset import load_pairs\n"
    )
    load += "columns = {'image_column': 'photo', 'mask_column': 'label'}\n"
    answer = client.run(f"{load}load_pairs('carol/photos', **columns)")
    assert "'carol/photos' has no labels.json: give its label set" in answer.error
    load += "pairs = load_pairs('carol/photos', **columns, labels=LabelSet.from_preset('bdd100k'))\n"
    assert client.run(f"{load}torch.save(pairs[0], arguments[0])", tmp_path / "pair").error is None
    pair = torch.load(tmp_path / "pair")
    assert torch.equal(pair["mask"], torch.from_numpy(ids))
    assert pair["stem"] == "000000"


def test_prepare_reads_a_data_set_of_the_hub_whole_and_as_a_stream(hub, client, pushed_sets, toy, tmp_path):
    code = (
        "from semseg_diffusers.data.prepare import prepare_dataset\n"
        "from semseg_diffusers.data.settings import PrepareSettings\n"
        "settings = {'source': 'alice/toy', 'format': 'datasets', 'resolution': None}\n"
        "prepare_dataset(PrepareSettings(output=arguments[0], **settings))\n"
        "prepare_dataset(PrepareSettings(output=arguments[1], streaming=True, **settings))\n"
    )
    assert client.run(code, tmp_path / "whole", tmp_path / "stream").error is None
    for name in ("whole", "stream"):
        for split in ("train", "val"):
            here, there = (load_pairs(place, split, cache_dir=tmp_path / "c") for place in (toy, tmp_path / name))
            assert (there.stems, there.labels) == (here.stems, here.labels)
            for pair, expected in zip(there, here, strict=True):
                assert torch.equal(pair["mask"], expected["mask"])
                assert torch.equal(pair["image"], expected["image"])


def test_the_card_of_a_data_set_says_licence_classes_counts_and_how_it_was_made(hub, client, pushed_sets):
    card = card_of(hub.dataset("alice/toy"))
    data = cards.metadata(card)
    assert (data["license"], data["task_categories"]) == ("apache-2.0", ["image-segmentation"])
    assert [split["split"] for split in data["configs"][0]["data_files"]] == ["train", "validation"]
    assert {feature["name"] for feature in data["dataset_info"]["features"]} >= {"image", "mask", "stem"}
    for text in (
        "# toy\n", 'load_pairs("alice/toy", "train")', "--dataset alice/toy", "| train | 3 |", "| validation | 2 |",
        "Height x width: 16 x 16 pixels.", "| 0 | road | 128, 64, 128 |", "Made by `semseg-diffusers toy`",
        "Drawn toy scenes: no licence of others.",
    ):  # fmt: skip
        assert text in card
    made = hub.dataset("lab/made")
    assert made.private
    card = made.files("first")["README.md"].data.decode()
    for text in ("Synthetic street images", "guidance 2 from 0 to 1", "seed 0", "It is not known here: fill it in."):
        assert text in card
    assert "synthetic" in cards.metadata(card)["tags"]
    assert "README.md" not in made.files("main")
    assert {"labels.json", "generation.json"} < set(made.files("first"))
    code = "from huggingface_hub import DatasetCard; DatasetCard.load('alice/toy').validate()"
    assert client.run(code).error is None


def test_masks_in_the_parquet_files_are_the_bytes_of_the_folder(hub, pushed_sets, toy):
    blob = hub.dataset("alice/toy").files()["data/train-00000-of-00001.parquet"]
    rows = parquet.read_table(io.BytesIO(blob.data)).to_pylist()
    assert len(rows) == 3
    for row in rows:
        assert row["mask"]["bytes"] == (toy / "train" / "masks" / f"{row['stem']}.png").read_bytes()


def test_a_data_set_that_is_pushed_again_keeps_what_was_edited_on_its_page(hub, client, toy, tmp_path):
    folder = shutil.copytree(toy, tmp_path / "toy16")
    push = ("push", "--dataset", folder, "--repo_id", "alice/edited")
    client.command(*push)
    repo = hub.dataset("alice/edited")
    edited = card_of(repo).replace("license: apache-2.0", "license: mit") + "\nAsk Alice first.\n"
    repo.commit("main", {**repo.files(), "README.md": type(repo.files()["README.md"])(edited.encode(), False)}, "edit")
    write_toy_dataset(folder, num_train=4, num_val=1, size=(16, 16), overwrite=True)
    client.command(*push)
    card = card_of(repo)
    assert "| train | 4 |" in card
    assert "Ask Alice first." in card
    assert cards.metadata(card)["license"] == "mit"
    assert cards.metadata(card)["dataset_info"]["splits"][0]["num_examples"] == 4


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: shutil.rmtree(folder), "there is no folder"),
        (lambda folder: (folder / "prepare.json").unlink(), "holds no prepare.json or generation.json"),
        (lambda folder: (folder / "labels.json").unlink(), "holds no labels.json"),
        (
            lambda folder: (folder / "val/masks/toy_0_5000000.png").write_bytes(b"half"),
            "toy_0_5000000.png.* cannot be",
        ),
    ],
)
def test_a_folder_that_is_no_data_set_of_ours_is_refused(hub, client, toy, tmp_path, spoil, message):
    folder = shutil.copytree(toy, tmp_path / "toy16")
    spoil(folder)
    requests = len(hub.requests)
    assert re.search(message, client.refused("push", "--dataset", folder, "--repo_id", "alice/refused"))
    assert len(hub.requests) == requests


# Errors: the Hub's own, with our hint

PREPARE = "from semseg_diffusers.hub.push import prepare_repo\nvalue = prepare_repo({})"
LOAD_MODEL = "from semseg_diffusers.hub.push import load_pipeline\nload_pipeline(*arguments[:1], revision={!r})"
LOAD_PAIRS = "from semseg_diffusers.data.dataset import load_pairs\nload_pairs(*arguments[:1], revision={!r})"


@pytest.mark.parametrize(
    ("token", "cause", "message"),
    [
        ("", "LocalTokenNotFoundError", "no token of the Hub is set. Log in with `hf auth login`, or set HF_TOKEN"),
        ("hf_wrong", "HfHubHTTPError", "the Hub refuses your token .*HF_TOKEN.* is invalid"),
        ("hf_reader", None, "the token of 'alice' may only read"),
        ("hf_bob", "HfHubHTTPError", "your token is not allowed .*rights.*Use one with write access to 'alice'"),
    ],
)
def test_a_token_that_will_not_do_is_refused_before_the_work(hub, client, saved_run, token, cause, message):
    answer = client.run(PREPARE.format("'alice/new', default_name='run'"), token=token)
    assert re.match(f"HubError: preparing the model 'alice/new' on the Hub: {message}", answer.error)
    assert "OSError" in answer.causes
    assert cause is None or cause in answer.causes
    assert re.search(message, client.refused("push", "--model", saved_run, "--repo_id", "alice/new", token=token))
    assert ("model", "alice/new") not in hub.repos


def test_a_repository_of_somebody_else_is_refused(hub, client):
    hub.add_repo("carol/empty")
    answer = client.run(PREPARE.format("'carol/empty', default_name='run'"))
    assert "'carol/empty' is another user's; the token is for alice or lab" in answer.error


def test_a_repository_is_made_with_the_default_name_and_found_again(hub, client):
    for arguments in ("None, default_name='my run (2)', private=True", "'my-run-2', default_name='x'"):
        assert client.run(PREPARE.format(arguments)).value == "alice/my-run-2"
    assert hub.model("alice/my-run-2").private
    assert client.run(PREPARE.format("'lab/d', default_name='x', repo_type='dataset'")).value == "lab/d"
    assert not hub.dataset("lab/d").private
    assert "HFValidationError" in client.run(PREPARE.format("'alice/a b', default_name='x'")).causes


def test_a_public_repository_does_not_take_what_was_meant_to_be_private(hub, client, saved_run):
    hub.add_repo("alice/public")
    error = client.refused("push", "--model", saved_run, "--repo_id", "alice/public", "--private")
    assert "--private: 'alice/public' exists and is public" in error


@pytest.mark.parametrize(
    ("kind", "files", "found"),
    [
        ("model", {"config.json": b'{"architectures": ["BertModel"]}', "model.safetensors": b"1"}, "a BertModel"),
        ("model", {"model_index.json": b'{"_class_name": "StableDiffusionPipeline"}'}, "a StableDiffusionPipeline"),
        ("model", {"notes.txt": b"1"}, r"other files \(notes.txt\)"),
        ("dataset", {"data.csv": b"1"}, r"other files \(data.csv\)"),
    ],
)
def test_a_repository_with_something_else_in_it_is_not_written_over(hub, client, saved_run, toy, kind, files, found):
    repo = hub.add_repo("alice/foreign", files, kind=kind)
    before = repo.files()
    words = ("--model", saved_run) if kind == "model" else ("--dataset", toy)
    error = client.refused("push", *words, "--repo_id", "alice/foreign")
    assert re.search(f"'alice/foreign' on the Hub holds {found}.*Nothing was pushed. Name another", error)
    assert repo.files() == before


@pytest.mark.parametrize("load", [LOAD_MODEL, LOAD_PAIRS], ids=["model", "pairs"])
@pytest.mark.parametrize(
    ("repo_id", "revision", "token", "cause", "message"),
    [
        ("alice/none", None, "hf_alice", "RepositoryNotFoundError", "the Hub has no (model|dataset) 'alice/none'"),
        ("alice/none", None, "", "RepositoryNotFoundError", "the Hub has no .*For a private one: Log in with"),
        ("alice/both", "gone", "hf_alice", "RevisionNotFoundError", "'alice/both' has no branch.*'gone'"),
        ("alice/both", None, "hf_wrong", "HfHubHTTPError", "the Hub refuses your token"),
    ],
)
def test_what_cannot_be_loaded_is_named_with_the_reason(hub, client, load, repo_id, revision, token, cause, message):
    hub.add_repo("alice/both", {"model_index.json": b'{"_class_name": "MaskGuidedDDPMPipeline"}'})
    hub.add_repo("alice/both", {"labels.json": b"{}"}, kind="dataset")
    answer = client.run(load.format(revision), repo_id, token=token)
    assert re.match(f"HubError: loading the (model|dataset) '{repo_id}': .*{message}", answer.error)
    assert cause in answer.causes
    assert "OSError" in answer.causes


def test_a_model_is_not_taken_for_a_data_set_nor_the_other_way_round(hub, client, saved_run, tmp_path):
    hub.add_repo("alice/m", {"model_index.json": b"{}"})
    hub.add_repo("alice/d", {"labels.json": b"{}"}, kind="dataset")
    error = client.run(LOAD_PAIRS.format(None), "alice/m").error
    assert "'alice/m' is a model on the Hub; expected a dataset" in error
    assert (
        "'alice/d' is a dataset on the Hub; expected a model" in client.run(LOAD_MODEL.format(None), "alice/d").error
    )
    hub.add_repo("alice/sd", {"model_index.json": b'{"_class_name": "StableDiffusionPipeline"}'})
    assert "holds a StableDiffusionPipeline; expected" in client.run(LOAD_MODEL.format(None), "alice/sd").error
    answer = client.run(LOAD_MODEL.format(None), tmp_path / "nowhere")
    assert "there is no folder" in answer.error
    error = client.refused("push", "--dataset", saved_run, "--repo_id", "alice/d")
    assert "It holds a model: push it with --model" in error
    assert "--results belongs to a model" in client.refused(
        "push", "--dataset", saved_run, "--repo_id", "alice/d", "--results", "a.json"
    )


def test_an_upload_that_breaks_is_retried_by_itself(hub, client, run, pipeline):
    before = hub.broken_uploads
    _change_weights(run)
    hub.break_uploads(after=2000, times=2)
    client.command("push", "--model", run, "--repo_id", "alice/retried")
    assert hub.broken_uploads == before + 2


def test_a_push_whose_connection_breaks_is_completed_by_the_same_command(hub, client, run):
    _change_weights(run)
    Image.new("RGB", (8, 8), (9, 9, 9)).save(run / "previews" / "step-0000009.png")
    push = ("push", "--model", run, "--repo_id", "alice/broken")
    hub.break_uploads(after=2000, times=6)  # the preview is smaller and arrives
    uploads = len(hub.uploads)
    answer = client.run(
        "from semseg_diffusers.hub.push import push_model\npush_model(*arguments)", run, "alice/broken"
    )
    assert re.search(r"HubError: pushing .*the connection broke .*Run the same command again", answer.error)
    assert "HTTPError" in answer.causes
    repo = hub.model("alice/broken")
    assert set(repo.files()) == {".gitattributes"}
    assert len(hub.uploads) == uploads + 1
    client.command(*push)
    assert len(hub.uploads) == uploads + 2  # the weights; not the preview again
    weights = "unet/diffusion_pytorch_model.safetensors"
    assert repo.files()[weights].data == (run / weights).read_bytes()
    assert len(repo.commits) == 2


def test_a_data_set_whose_connection_breaks_is_completed_by_the_same_command(hub, client, tmp_path):
    folder = write_toy_dataset(tmp_path / "toy", num_train=1, num_val=12, size=(32, 32), seed=3)
    push = ("push", "--dataset", folder, "--repo_id", "alice/brokenset")
    hub.break_uploads(after=30_000, times=6)  # the first split's file is smaller and arrives
    uploads = len(hub.uploads)
    assert "the connection broke" in client.refused(*push)
    assert len(hub.uploads) == uploads + 1
    assert not [name for name in hub.dataset("alice/brokenset").files() if name.endswith(".parquet")]
    client.command(*push)
    assert len(hub.uploads) == uploads + 2
    files = hub.dataset("alice/brokenset").files()
    assert sorted(name for name in files if name.endswith(".parquet")) == [
        "data/train-00000-of-00001.parquet",
        "data/validation-00000-of-00001.parquet",
    ]


def _change_weights(run: Path) -> None:
    path = run / "unet" / "diffusion_pytorch_model.safetensors"
    weights = {name: torch.randn_like(value) for name, value in load_file(path).items()}
    save_file(weights, path, metadata={"format": "pt"})


@pytest.mark.filterwarnings("ignore:The `local_dir_use_symlinks`:UserWarning")  # diffusers passes it
def test_without_a_network_the_error_says_why():
    with pytest.raises(HubError, match="loading the model 'alice/none': .*HF_HUB_OFFLINE is set"):
        load_pipeline("alice/none")  # the processes of the tests themselves are offline


# Cards, without a Hub


def test_parts_are_replaced_and_everything_else_is_kept():
    card = "---\na: 1  # why\n---\n\nmine\n<!-- begin use: x -->\nold\n<!-- end use -->\nmine too\n"
    new = cards.replace_part(card, "use", r"new \1")
    assert new == card.replace("old", r"new \1")
    assert cards.replace_part(card, "results", "new") == card
    assert cards.has_part(card.replace("\n", "\r\n"), "use")
    assert cards.with_metadata(card, a=1) == card  # nothing changes, so the comment stays
    assert yaml.safe_load(cards.with_metadata(card, b="x").split("---")[1]) == {"a": 1, "b": "x"}
    assert cards.with_metadata("text", b="x") == "---\nb: x\n---\ntext"
    assert cards.outside_parts(card) == cards.outside_parts(new) == "mine\n\nmine too"


@pytest.mark.parametrize("source_format", [*dataset_format.DATA_LICENSES, "folder", None])
def test_a_licence_is_named_where_it_is_known(source_format):
    name, text = dataset_format.data_license(source_format, "these weights")
    assert (name is None) == (source_format not in dataset_format.DATA_LICENSES)
    assert text.endswith(".")
