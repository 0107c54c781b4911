"""Protocols: how frozen encoders are evaluated. One YAML file each in config/protocols/, named in every result."""
