"""Arguments that several subcommands have."""
