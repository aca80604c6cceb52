"""Execution of plans: megatron-core pipeline stages with PEFT adapters."""
