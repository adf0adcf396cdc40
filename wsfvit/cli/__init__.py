"""Command lines: the argument groups that commands share, and the parser of every classification command."""
