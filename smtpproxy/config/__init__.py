"""Settings: the schema, and how a TOML file, the environment and flags become it."""
