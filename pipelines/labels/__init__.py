"""Labels from files into a model's inference table: read in bounded memory, checked row by row, taken once."""

from .taking import Taken, take_label_file

__all__ = ["Taken", "take_label_file"]
