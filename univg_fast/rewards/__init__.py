"""Rule-based rewards: the answer is parsed once, and every term is a number per completion."""
