"""One image: what happens to it before the network sees it."""
