"""One page of HTML about a plan, its trace and its losses, which needs no network."""
