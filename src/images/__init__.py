"""One image, from its file to the network's input: decoding, preprocessing, augmentation."""
