"""A pass gives each image to the network once, in any split between processes, and never again after a stop."""

import pytest
import torch

from semseg_diffusers.data.labels import LabelSet
from semseg_diffusers.evaluation import inference as passes
from semseg_diffusers.evaluation.inference import cached_inference
from semseg_diffusers.evaluation.inputs import ImageSet
from semseg_diffusers.utils.distributed import Processes


PIXELS = torch.randint(0, 256, (11, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def image_set(pixels=PIXELS):
    names = tuple(f"{index:02}" for index in range(len(pixels)))
    return ImageSet(LabelSet.from_preset("camvid"), names, names, lambda i: pixels[i], lambda i: pixels[i, 0])


class Network:
    """Says the mean of each image, and remembers how many it saw."""

    def __init__(self):
        self.seen = 0

    def __call__(self, images):
        self.seen += len(images)
        return images.float().mean((1, 2, 3))


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(passes, "CHUNK", 4)


def run(network, folder, images=None, **changes):
    options = {"identity": {"name": "mean"}, "folder": folder, "batch_size": 3, **changes}
    return cached_inference(network, images or image_set(), **options)


@pytest.mark.parametrize("batch_size", [1, 3, 50])
def test_results_are_those_of_the_images_in_their_order(tmp_path, batch_size):
    network = Network()
    assert torch.equal(run(network, tmp_path, batch_size=batch_size), PIXELS.float().mean((1, 2, 3)))
    assert network.seen == 11


def test_what_is_done_is_not_done_again(tmp_path):
    first = run(Network(), tmp_path)
    again = Network()
    assert torch.equal(run(again, tmp_path), first)
    assert again.seen == 0


def test_a_stopped_pass_goes_on_where_it_was(tmp_path):
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
    assert network.seen == 7  # the first piece of four was whole


def test_another_network_or_other_pixels_are_never_taken_for_these(tmp_path):
    run(Network(), tmp_path)
    other_network = Network()
    run(other_network, tmp_path, identity={"name": "another"})
    assert other_network.seen == 11
    changed = PIXELS.clone()
    changed[5] += 1
    network = Network()
    assert torch.equal(run(network, tmp_path, image_set(changed)), changed.float().mean((1, 2, 3)))
    assert network.seen == 4  # the piece that holds the changed image


def test_a_damaged_piece_is_made_anew(tmp_path):
    first = run(Network(), tmp_path)
    sorted(tmp_path.iterdir())[0].write_bytes(b"damaged")
    network = Network()
    assert torch.equal(run(network, tmp_path), first)
    assert 0 < network.seen <= 4


def test_a_piece_that_cannot_be_written_is_an_error_that_names_it(tmp_path):
    with pytest.raises(OSError, match=r"piece.safetensors' cannot be written"):  # safetensors' own error is none
        passes._save(tmp_path / "gone" / "piece.safetensors", torch.zeros(3))


def test_shares_of_processes_make_up_the_whole(tmp_path):
    """Each share by itself, as processes that gather names only would do it."""

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


def test_a_piece_that_cannot_be_seen_is_an_error_that_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(passes, "LISTING_PATIENCE", 0)
    with pytest.raises(OSError, match="one file system"):
        passes._load_patiently(tmp_path / "none.safetensors")
