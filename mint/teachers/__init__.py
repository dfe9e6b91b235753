"""Teachers: models that rank the classes of a case."""
