"""Pages of a report: one self-contained HTML file each."""
