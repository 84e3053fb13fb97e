"""The core all methods share: calibration, rules, the plan and its execution; below it searches and methods."""
