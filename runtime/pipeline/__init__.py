"""One pipeline stage at work: programs, communication, optimizer steps."""
