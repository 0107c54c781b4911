"""Protocols: how encoders are evaluated. Each is a YAML file in config/protocols/ and is named in every result."""
