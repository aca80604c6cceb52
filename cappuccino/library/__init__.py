"""The instance library: what is best known of every entry, and runs that compare with it."""
