"""The debugger of ranks: pdb on a rank, a socket between, and the prompt in the notebook or a terminal."""
