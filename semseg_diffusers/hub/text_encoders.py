"""Text encoders of transformers, by folder or id of the Hub, and how a pipeline refers to one that is not copied."""

from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from safetensors import SafetensorError

from semseg_diffusers.hub.folders import weights_hash
from semseg_diffusers.pipelines.text_inputs import check_text_encoder
from semseg_diffusers.utils.hub_errors import check_name, hub_errors


def load_text_encoder(name: str, option: str = "--text_encoder") -> tuple[Any, Any]:
    """Load a text encoder of transformers and its tokenizer from a folder or the Hub, frozen.

    Raises:
        ValueError: no such folder, or it holds no model that encodes text alone, or a truncated file.
        HubError: the Hub has no such model, or denies access.
    """
    from transformers import AutoModelForTextEncoding, AutoTokenizer

    check_name(name, "model")
    with hub_errors(f"loading the text encoder '{name}'", name, "model"):
        try:
            tokenizer = AutoTokenizer.from_pretrained(name)
            encoder = AutoModelForTextEncoding.from_pretrained(name, use_safetensors=True)
        except (ValueError, KeyError, SafetensorError) as error:
            raise ValueError(
                f"{option} {name} does not load as a text encoder of transformers: {str(error).splitlines()[0]} Give "
                "a folder or an id with config.json, model.safetensors and a tokenizer, such as "
                "sentence-transformers/all-MiniLM-L6-v2."
            ) from error
    check_text_encoder(encoder, tokenizer)
    return encoder.requires_grad_(False).eval(), tokenizer


def cached_commit(name: str) -> str | None:
    """Return the commit of a model of the Hub that was loaded before; None for a folder."""
    return None if Path(name).is_dir() else Path(hf_hub_download(name, "config.json")).parent.name


def source_of(name: str) -> str:
    """Return the `text_encoder_source` of a pipeline whose encoder was loaded from the Hub: its id and commit.

    Raises:
        ValueError: it was loaded from a folder.
    """
    commit = cached_commit(name)
    if commit is None:
        raise ValueError(
            f"'{name}' is a folder, which others cannot load a text encoder from. Give the id of one on the Hub "
            "(owner/name), or save the encoder with the model."
        )
    return f"{name}@{commit}"


def check_same_encoder(name: str, text_encoder: Any, tokenizer: Any, pipeline: Any) -> None:
    """Raise a `ValueError` unless an encoder and its tokenizer are those that a pipeline reads texts with."""
    ours = {key: value.float() for key, value in pipeline.text_encoder.state_dict().items()}
    theirs = {key: value.float() for key, value in text_encoder.state_dict().items()}
    if weights_hash(ours) != weights_hash(theirs) or pipeline.tokenizer.get_vocab() != tokenizer.get_vocab():
        raise ValueError(f"'{name}' is another text encoder than the model was trained with: its weights differ.")
