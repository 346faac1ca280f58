"""Tables of a report: methods, runs and published results."""
