"""Many images: listings of folders and MindRecords, batches, ImageNet's class names, a small data set."""
