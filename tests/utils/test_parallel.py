"""Results come in the order of the items, whoever computes them."""

import os
import signal

import pytest

from semseg_diffusers.utils.parallel import map_in_order


def double(item: int) -> int:
    """Work that fails on 7 as a wrong file does, and on 9 as a full disk does."""
    if item == 7:
        raise ValueError("seven")
    if item == 9:
        raise OSError("nine")
    return 2 * item


def die(item: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return item


@pytest.mark.parametrize("num_workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_results_come_in_the_order_of_the_items_with_errors_in_their_place(num_workers):
    results = list(map_in_order(double, iter(range(9)), num_workers))
    assert [(item, str(result)) for item, result in results] == [
        (item, "seven" if item == 7 else str(2 * item)) for item in range(9)
    ]
    with pytest.raises(OSError, match="nine"):
        list(map_in_order(double, range(12), num_workers))
    assert list(map_in_order(double, [], num_workers)) == []


@pytest.mark.slow
def test_a_process_that_is_killed_is_an_error_with_advice():
    with pytest.raises(OSError, match="one of the 2 processes was killed; .*--num_workers"):
        list(map_in_order(die, range(4), 2))
