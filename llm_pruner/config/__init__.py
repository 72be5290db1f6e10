"""The options of every command as frozen dataclasses, composed from groups, and how YAML files and flags say them."""
