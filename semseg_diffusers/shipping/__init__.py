"""Writes a trained model as a small folder to ship; stands above training, generation and the Hub."""
