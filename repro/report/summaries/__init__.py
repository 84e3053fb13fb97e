"""What the README and pages of docs/ say of results: a summary each, made from the committed tables."""
