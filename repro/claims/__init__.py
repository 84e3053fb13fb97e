"""Claims of the papers, held against what was measured."""
