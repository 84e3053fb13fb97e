"""Small models and tasks made from the Python sources that every installation carries."""
