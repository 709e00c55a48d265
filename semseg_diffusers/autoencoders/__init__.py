"""Autoencoders of diffusers trained on one's own photos, for diffusion on their latents."""
