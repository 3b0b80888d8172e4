"""Data parallelism by MPI: gradients are averaged by mpi4py, as a plain reference for every other framework."""
