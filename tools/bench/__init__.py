"""Compare the speed of lmjax with that of PyTorch and transformers, side by side."""
