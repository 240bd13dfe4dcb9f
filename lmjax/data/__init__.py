"""From documents to batches, with numpy and grain; never imports jax or flax."""
