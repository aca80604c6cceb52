"""The stages of one replica as the ranks of a cluster."""
