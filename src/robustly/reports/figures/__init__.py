"""Figures of a report: plotly charts with their tables."""
