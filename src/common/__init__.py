"""What every room may use and that uses none of them: errors, flags, Ctrl-C, files, machine, compilers."""
