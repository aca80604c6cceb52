"""The frozen backbone: configuration, the part of one pipeline stage, attention over packed samples."""
