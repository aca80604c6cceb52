"""Cappuccino plans and runs the fine-tuning of many LoRA adapters on one frozen backbone."""

__version__ = "0.1.0"
