"""What is done once, before training: data sets unpacked or written, a folder split into two parts."""
