"""Tasks and text of natural English, made at run time from the prose inside installed packages."""
