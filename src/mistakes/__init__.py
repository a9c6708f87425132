"""The report on an evaluation as one HTML file: how good, how sure, and which images went wrong."""
