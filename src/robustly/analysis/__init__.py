"""Analysis of a model: input gradients and loss landscapes."""
