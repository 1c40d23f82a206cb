"""Speech recognition with adaptively sparse and monotonic attention for Hugging Face Transformers."""
