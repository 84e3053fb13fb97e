"""What sparsity does to text that a model generates itself: divergence by position, and reasoning in steps."""
