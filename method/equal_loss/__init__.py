"""The method `equal_loss`: thresholds of equal marginal loss."""
