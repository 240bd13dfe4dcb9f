"""Models and tokenizers of other programs: Hugging Face directories, in and out."""
