"""univg-fast: a throughput-tuned two-stage trainer for universal visual grounding."""

__version__ = "0.1.0"
