"""The small model and the text that are built in, so that every command can be tried without a download."""
