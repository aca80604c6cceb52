"""LoRA adapters on a stage: many at once, each as if it were alone."""
