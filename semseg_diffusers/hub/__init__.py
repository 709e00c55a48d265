"""Publishes models and data sets on the Hugging Face Hub, with their cards."""
