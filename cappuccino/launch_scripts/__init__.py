"""What is submitted to run a plan on a cluster: scripts and manifests, written from a plan alone."""
