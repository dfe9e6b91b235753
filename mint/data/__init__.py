"""Data: chat encoding, preference files, packed batches, and a reader for each source format."""
