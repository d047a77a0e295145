"""The authors' released checkpoints: reading, writing, and conversion to our model and back."""

CLIP, SD = "openai/clip-vit-large-patch14", "stabilityai/stable-diffusion-2-1-base"
"""Hugging Face hub names that the authors' code loads CLIP and Stable Diffusion from."""
