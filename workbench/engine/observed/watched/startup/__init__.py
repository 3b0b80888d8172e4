"""The folder that ``workbench watch`` puts first on ``PYTHONPATH``."""
