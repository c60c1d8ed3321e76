"""Drop-ins for other GRPO codebases: one module a host, one call each, `patch(...) -> Patch` (docs/dropins.md).

A drop-in needs `univg_kernels`, torch and its host, and nothing else of this package; the host is imported when called.
"""
