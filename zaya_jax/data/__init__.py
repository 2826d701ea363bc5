"""Data: text corpora, tokenizers, verifiable task families, and the pipelines that pack them."""
