"""The engine of training: the loop, its steps and optimisers, checkpoints, metrics, validation, reasons to stop."""
