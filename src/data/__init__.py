"""Many images: listings of folders, lists and MindRecords, batches, ImageNet's class names."""
