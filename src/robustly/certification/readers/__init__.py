"""Readers: networks of other formats as graphs."""
