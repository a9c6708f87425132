"""A checkpoint as a file for deployment: the formats, the plan, the proof."""
