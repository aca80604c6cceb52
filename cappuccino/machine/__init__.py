"""What this machine has: how the package was installed, which other packages are there, GPUs, compiled kernels."""
