"""What plans, cells and whole reproductions cost."""
