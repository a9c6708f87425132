"""The network: numbers in, cells out. Knows nothing of files, devices or configuration."""
