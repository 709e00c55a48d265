"""Publishes models and datasets on the Hugging Face Hub, with their cards."""
