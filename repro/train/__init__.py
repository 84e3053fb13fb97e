"""Models with true zeros: trained on from an embedded model, each beside a dense control of as many tokens."""
