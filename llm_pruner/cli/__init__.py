"""The command line: parser, exit codes, and one file for each command that chains stages."""
