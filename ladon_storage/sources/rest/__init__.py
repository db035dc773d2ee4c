"""JSON APIs, by configuration alone."""
