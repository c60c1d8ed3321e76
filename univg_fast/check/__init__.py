"""The look before training: every record and every image, what is wrong with them, and what the run will cost."""
