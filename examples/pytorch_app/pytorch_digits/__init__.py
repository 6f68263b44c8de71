"""Flower's PyTorch quickstart, on handwritten digits that need no download."""
