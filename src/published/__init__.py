"""Published weights by name: the table of them, and the way from a name to a whole, checked file on this machine."""
