"""What plans are made from, each measured in one pass over activations; on a CPU torch does the same."""
