"""Live adjustment: a bounded, revertible layer over a model, learnt from the labels of its own recent answers."""
