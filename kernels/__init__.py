"""What every sparse kernel must compute, in plain torch."""
