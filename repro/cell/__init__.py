"""One cell of a table: its plan, its measurement, its record; and sweeps of cells."""
