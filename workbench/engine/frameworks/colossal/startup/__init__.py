"""Makes a process ready for Colossal-AI: imports that leave out what no rank needs, and an accelerator of CPUs."""
