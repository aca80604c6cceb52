"""Commands for clusters: the script that is submitted, and the replica that it runs."""
