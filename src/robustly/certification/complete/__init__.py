"""Complete verification: branch and bound, input splitting, mixed-integer programs."""
