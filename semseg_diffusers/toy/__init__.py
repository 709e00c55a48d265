"""Toy street scenes with exact masks."""
