"""The names that live on ranks: what they are, where ranks differ, and which of them complete a word."""
