"""The page of all results, and the README's generated parts."""
