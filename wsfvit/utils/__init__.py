"""Process group, precision, files, progress, figures and errors."""
