"""Attention that looks at some key-value groups of each token alone: scores of groups, launches over them."""
