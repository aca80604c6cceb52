"""One replica: packing samples into micro-batches and ordering every stage."""
