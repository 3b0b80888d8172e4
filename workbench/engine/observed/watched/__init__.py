"""A script that knows nothing of us, observed by hooks that its Python starts with: ``workbench watch``."""
