"""Training data: sample files, tokens, lengths, micro-batches."""
