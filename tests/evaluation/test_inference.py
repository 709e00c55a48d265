"""Each image passes through the network once, however processes share them, and never again when resumed."""

import pytest
import torch

from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.evaluation import inputs
from semseg_diffusers.evaluation.inputs import ImageSet, cached_inference
from semseg_diffusers.utils.distributed import Processes


PIXELS = torch.randint(0, 256, (11, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def image_set(pixels=PIXELS):
    names = tuple(f"{index:02}" for index in range(len(pixels)))
    return ImageSet(LabelSet.from_preset("camvid"), names, names, lambda i: pixels[i], lambda i: pixels[i, 0])


class Network:
    """Returns the mean of each image, and counts the images."""

    def __init__(self):
        self.seen = 0

    def __call__(self, images):
        self.seen += len(images)
        return images.float().mean((1, 2, 3))


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(inputs, "CHUNK", 4)


def run(network, folder, images=None, **changes):
    options = {"identity": {"name": "mean"}, "folder": folder, "batch_size": 3, **changes}
    return cached_inference(network, images or image_set(), **options)


@pytest.mark.parametrize("batch_size", [1, 3, 50])
def test_results_are_those_of_the_images_in_their_order(tmp_path, batch_size):
    network = Network()
    assert torch.equal(run(network, tmp_path, batch_size=batch_size), PIXELS.float().mean((1, 2, 3)))
    assert network.seen == 11


def test_cached_chunks_are_not_recomputed(tmp_path):
    first = run(Network(), tmp_path)
    again = Network()
    assert torch.equal(run(again, tmp_path), first)
    assert again.seen == 0


def test_interrupted_inference_resumes(tmp_path):
    class Stopped(Network):
        def __call__(self, images):
            if self.seen >= 6:
                raise KeyboardInterrupt
            return super().__call__(images)

    with pytest.raises(KeyboardInterrupt):
        run(Stopped(), tmp_path)
    assert [path for path in tmp_path.iterdir() if path.name.endswith(".tmp")] == []
    network = Network()
    assert torch.equal(run(network, tmp_path), PIXELS.float().mean((1, 2, 3)))
    assert network.seen == 7  # the first chunk of four was complete


def test_another_network_or_other_pixels_are_recomputed(tmp_path):
    run(Network(), tmp_path)
    other_network = Network()
    run(other_network, tmp_path, identity={"name": "another"})
    assert other_network.seen == 11
    changed = PIXELS.clone()
    changed[5] += 1
    network = Network()
    assert torch.equal(run(network, tmp_path, image_set(changed)), changed.float().mean((1, 2, 3)))
    assert network.seen == 4  # the chunk with the changed image


def test_a_damaged_chunk_is_recomputed(tmp_path):
    first = run(Network(), tmp_path)
    sorted(tmp_path.iterdir())[0].write_bytes(b"damaged")
    network = Network()
    assert torch.equal(run(network, tmp_path), first)
    assert 0 < network.seen <= 4


def test_a_chunk_that_cannot_be_written_raises_an_error_with_its_path(tmp_path):
    with pytest.raises(OSError, match=r"chunk.safetensors' cannot be written"):  # safetensors' own error is none
        inputs._save(tmp_path / "gone" / "chunk.safetensors", torch.zeros(3))


def test_shares_of_processes_cover_all_images(tmp_path):
    """One share after the other, without gathering the names."""

    class Share(Processes):
        def gather(self, value):
            return [value]

        def run_on_all_ranks(self, task):
            return task()

    networks = [Network(), Network()]
    for index in (1, 0):
        processes = Share(count=2, index=index)
        if index == 1:
            assert run(networks[1], tmp_path, processes=processes) is None
        else:
            with pytest.raises(KeyError):  # the main process lacks the other's names here
                run(networks[0], tmp_path, processes=processes)
    assert [network.seen for network in networks] == [4 + 3, 4]
    whole = Network()
    assert torch.equal(run(whole, tmp_path), PIXELS.float().mean((1, 2, 3)))
    assert whole.seen == 0


def test_a_chunk_that_another_machine_cannot_see_raises_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, "LISTING_PATIENCE", 0)
    with pytest.raises(OSError, match="one file system"):
        inputs._load_patiently(tmp_path / "none.safetensors")
