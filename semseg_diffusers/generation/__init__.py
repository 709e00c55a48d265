"""Turns masks into labelled images."""
