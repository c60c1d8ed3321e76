"""What the Triton faces share: the softmax sweeps, the row program, the factors of the responses, the launch table."""
