"""Many images: which files, which classes, which order; folders, MindRecords, batches."""
