"""What is under way: a plan that acts on a model, and a search that can go on where it was cut off."""
