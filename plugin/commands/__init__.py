"""The commands of `flywheel`, by what they are for."""
