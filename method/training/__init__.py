"""Lightly trained methods: the model's weights stay, what its plan says is fitted to the dense predictions."""
