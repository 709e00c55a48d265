"""What masks hold: counted, drawn, and read for the classes that a model will draw badly."""
