"""The codebook of a VQModel: how its codes are used, and codes that no latent chooses moved to where latents are.

Dead codes are re-seeded from encoder outputs, as in Jukebox (Dhariwal et al. 2020, section 3.1).
"""

from collections.abc import Sequence

import torch


def count_codes(indices: torch.Tensor, size: int) -> torch.Tensor:
    """Return how often each code of a codebook is chosen, (size,) long, given the choices (any shape)."""
    return torch.bincount(indices.flatten(), minlength=size)


def used_share(counts: torch.Tensor) -> float:
    """Return the share of the codes that are chosen at all.

    Example:
        >>> used_share(torch.tensor([3, 0, 1, 0]))
        0.5
    """
    return (counts > 0).float().mean().item()


def perplexity(counts: torch.Tensor) -> float:
    """Return the exponential of the entropy of the choices: how many codes, equally used, would say as much.

    Example:
        >>> round(perplexity(torch.tensor([5, 5, 0, 0])), 4)
        2.0
    """
    shares = counts.double() / counts.sum()
    return torch.special.entr(shares).sum().exp().item()


def choose_latents(latents: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    """Return `count` different latents of (M, D), or all of them if there are fewer, in random order."""
    order = torch.randperm(len(latents), generator=generator)[:count]
    return latents[order.to(latents.device)]


@torch.no_grad()
def revive(
    codebook: torch.nn.Parameter, dead: torch.Tensor, latents: torch.Tensor, optimizer: torch.optim.Optimizer,
    averages: Sequence[torch.Tensor], generator: torch.Generator,
) -> int:  # fmt: skip
    """Move dead codes to latents, and forget what the optimizer and averages of the codebook know of them.

    Args:
        codebook: weights (N, D).
        dead: which of the codes, (N,) bool.
        latents: outputs of the encoder, (M, D).
        optimizer: of the codebook.
        averages: of the codebook, (N, D) each.
        generator: of the choice, on the CPU.

    Returns:
        how many codes moved: fewer than are dead if there are fewer latents.
    """
    (numbers,) = dead.nonzero(as_tuple=True)
    chosen = choose_latents(latents, len(numbers), generator)
    numbers = numbers[: len(chosen)]
    for weights in (codebook, *averages):
        weights[numbers] = chosen.to(weights)
    state = optimizer.state[codebook]
    for name in ("exp_avg", "exp_avg_sq"):
        if name in state:
            state[name][numbers] = 0
    return len(numbers)
