"""Fixtures that several test files use."""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers.hub_server import HubServer
from helpers.preloaded import DIFFUSERS, LIBRARIES, Preloaded


ROOT = Path(__file__).resolve().parent.parent


def pytest_configure(config: pytest.Config) -> None:
    """Keep every test off the network, before the libraries read these settings."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real driving data: SEMSEG_DATA, or shared/data beside the checkout."""
    folder = Path(os.environ.get("SEMSEG_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set SEMSEG_DATA to the folder that holds camvid/")
    return folder


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared dataset of toy scenes, 16 x 32: six to train on, two to validate by."""
    from semseg_diffusers.toy.scenes import write_toy_dataset

    folder = tmp_path_factory.mktemp("data") / "toy"
    return write_toy_dataset(folder, num_train=6, num_val=2, size=(16, 32), seed=0)


@pytest.fixture
def nothing_stays_running() -> Iterator[None]:
    """Kill the processes of `training_runs.start` that a failed test left."""
    yield
    from helpers.training_runs import kill_started

    kill_started()


@pytest.fixture
def tiny_unet():
    """A `MaskGuidedUNet2DModel` of 8 channels for 16 x 16 images and 5 classes, the same weights each time."""
    import torch

    from semseg_diffusers.models.unet_mask_guided import MaskGuidedUNet2DModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = MaskGuidedUNet2DModel(
            sample_size=16,
            num_classes=5,
            block_out_channels=(8, 16),
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            norm_num_groups=4,
            attention_head_dim=4,
        )
    return unet.eval()


@pytest.fixture
def batches() -> Iterator[Callable]:
    """A recorder of the batch size of every forward pass of a network: `calls = batches(unet)`."""
    handles = []

    def record(unet) -> list[int]:
        sizes: list[int] = []
        handles.append(unet.register_forward_pre_hook(lambda _, args: sizes.append(args[0].shape[0])))
        return sizes

    yield record
    for handle in handles:
        handle.remove()


@pytest.fixture(scope="module")
def hub() -> Iterator[HubServer]:
    """A Hub of its own for a test file, over HTTP; processes reach it with `hub.environment(home)`."""
    with HubServer() as server:
        yield server


@pytest.fixture(scope="session")
def clean_processes() -> Iterator[tuple[Preloaded, Preloaded]]:
    """What `clean_process` forks its processes from; the second has imported diffusers, without this package."""
    both = Preloaded(LIBRARIES), Preloaded(DIFFUSERS)
    yield both
    for processes in both:
        processes.close()


# Runs first where diffusers has been imported already: its cache of remote code is this process's own.
WITHOUT_PACKAGE = """
import os, sys
import diffusers.utils.dynamic_modules_utils
sys.modules["semseg_diffusers"] = None
diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE = os.environ["HF_MODULES_CACHE"]
"""


@pytest.fixture
def clean_process(
    tmp_path: Path, clean_processes: tuple[Preloaded, Preloaded]
) -> Callable[..., subprocess.CompletedProcess]:
    """Run Python code in a process of its own: `clean_process(code, *arguments, without_package=False, ...)`.

    The process has its own cache of remote code, no network, and an empty folder to stand in; torch is imported.
    `without_package` makes `import semseg_diffusers` fail in it; `environment` adds variables; `check=False` lets it
    fail. Its answer is a `subprocess.CompletedProcess` with text in `stdout` and `stderr`.
    """

    def run(
        code: str,
        *arguments: str,
        without_package: bool = False,
        environment: dict[str, str] | None = None,
        timeout: float = 300,
        check: bool = True,
    ) -> subprocess.CompletedProcess:
        folder = tmp_path / "clean_process"
        folder.mkdir(exist_ok=True)
        variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        variables |= {"HF_MODULES_CACHE": str(tmp_path / "hf_modules"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        processes = clean_processes[without_package and environment is None]
        if processes is clean_processes[1]:
            code = WITHOUT_PACKAGE + code
        elif without_package:
            code = "import sys\nsys.modules['semseg_diffusers'] = None\n" + code
        else:
            variables["PYTHONPATH"] = str(ROOT)
        variables |= environment or {}
        process = processes.start(["-c", code, *arguments], variables, folder, errors_apart=True)
        try:
            written = process.communicate(timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        result = subprocess.CompletedProcess("python -c", process.returncode, *written)
        if check and result.returncode:
            pytest.fail(f"the process ended with code {result.returncode}:\n{result.stdout}\n{result.stderr}")
        return result

    return run
