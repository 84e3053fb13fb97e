"""The harness: one run from configuration to record, and the tables made from records."""
