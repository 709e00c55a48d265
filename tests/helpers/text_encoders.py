"""A tiny text encoder with a tokenizer, made on the spot: whole words, and the letters of all others."""

from pathlib import Path

import torch
from transformers import BertConfig, BertModel, BertTokenizerFast


LENGTH = 16  # of its embeddings
WORDS = ("a", "red", "blue", "white", "car", "house", "the", "rainy", "evening", "at", "night")


def tiny_text_encoder(folder: Path, max_length: int = 12) -> tuple[BertModel, BertTokenizerFast]:
    letters = "abcdefghijklmnopqrstuvwxyz"
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{x}" for x in letters), *WORDS[1:]]
    file = folder / "vocab.txt"
    file.write_text("\n".join(vocabulary))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = BertModel(
            BertConfig(
                vocab_size=len(vocabulary),
                hidden_size=LENGTH,
                num_hidden_layers=1,
                num_attention_heads=2,
                intermediate_size=16,
                max_position_embeddings=max_length,
            )
        ).eval()
    return encoder, BertTokenizerFast(vocab=str(file))
