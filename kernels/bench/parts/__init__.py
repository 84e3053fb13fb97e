"""What benchmarks are made of: arguments, models that are drawn, times and rows."""
