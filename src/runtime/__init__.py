"""Which device computes, which rank this process is, and what ranks tell each other."""
