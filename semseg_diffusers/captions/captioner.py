"""Texts about images by an image-to-text model of transformers, such as BLIP, or one that answers in a chat."""

from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError

from semseg_diffusers.hub.text_encoders import cached_commit
from semseg_diffusers.utils.distributed import choose_device
from semseg_diffusers.utils.hub_errors import check_name, hub_errors


MAX_NEW_TOKENS = 40
INSTRUCTION = "Describe this street in one short sentence: its light, its weather and what is in it."


class Captioner:
    """An image-to-text model of transformers by folder or id of the Hub, and its processor.

    Args:
        name: folder or id; its weights are safetensors.
        prompt: what the model is asked; of a model without chat, the start of each text.
        device: torch device; default: the GPU if there is one.

    Raises:
        ValueError: no such folder, or it holds no image-to-text model, or a truncated file; no such device.
        HubError: the Hub has no such model, or denies access.
    """

    def __init__(self, name: str, prompt: str | None = None, device: str | None = None):
        from transformers import AutoModelForImageTextToText, AutoProcessor

        chosen = torch.device(choose_device(device))
        check_name(name, "model")
        with hub_errors(f"loading the captioner '{name}'", name, "model"):
            try:
                self.processor: Any = AutoProcessor.from_pretrained(name)
                model: Any = AutoModelForImageTextToText.from_pretrained(name, use_safetensors=True)
            except (ValueError, KeyError, SafetensorError) as error:
                raise ValueError(
                    f"--captioner {name} does not load as an image-to-text model of transformers: "
                    f"{str(error).splitlines()[0]:.160} Give a folder or an id with config.json, model.safetensors "
                    "and a processor, such as Salesforce/blip-image-captioning-base."
                ) from error
        self.revision = cached_commit(name)
        self.device = chosen
        self.model = model.to(self.device).eval()
        self.is_chat = getattr(self.processor, "chat_template", None) is not None
        self.prompt = prompt or (INSTRUCTION if self.is_chat else None)

    @torch.no_grad()
    def describe(self, image: Image.Image, num_wordings: int) -> list[str]:
        """Return the most probable texts about an image, as a beam search finds them; fewer where some are equal."""
        inputs = self._inputs(image).to(self.device)
        search = {"num_beams": num_wordings, "num_return_sequences": num_wordings, "do_sample": False}
        tokens = self.model.generate(**inputs, **search, max_new_tokens=MAX_NEW_TOKENS)  # (num_wordings, length)
        if self.is_chat:  # most models repeat the conversation first
            asked = inputs["input_ids"]  # (1, length)
            repeats = tokens.shape[1] > asked.shape[1] and bool((tokens[:, : asked.shape[1]] == asked).all())
            tokens = tokens[:, asked.shape[1] :] if repeats else tokens
        texts = (" ".join(text.split()) for text in self.processor.batch_decode(tokens, skip_special_tokens=True))
        return list(dict.fromkeys(filter(None, texts)))

    def _inputs(self, image: Image.Image) -> Any:
        """Return the inputs of the model, in its dtype."""
        text = self.prompt
        if self.is_chat:
            content = [{"type": "image"}, {"type": "text", "text": text}]
            text = self.processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True
            )
        given = {} if text is None else {"text": text}
        return self.processor(images=image, **given, return_tensors="pt").to(self.model.dtype)
