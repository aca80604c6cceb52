"""Which adapters share a replica, and on how many GPUs: column generation over sets of adapters."""
