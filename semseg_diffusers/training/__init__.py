"""Training of mask-guided diffusion networks: settings, data order, objective, checkpoints, and the loop."""
