"""Data that all ranks of a host read from one copy in memory."""
