"""What every room may use and that uses none of them: errors and flags, files, processor, threads, compilers."""
