"""Data plane: records in, predictions and labels through. Works without the other two rooms."""
