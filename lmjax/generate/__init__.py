"""From parameters to text: sampling, decoding with a cache, scoring."""
