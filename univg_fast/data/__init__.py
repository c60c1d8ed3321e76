"""From files on disk to samples ready for the model."""
