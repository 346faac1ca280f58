"""Analysis of a model: input gradients, loss landscapes, unions of threats."""
