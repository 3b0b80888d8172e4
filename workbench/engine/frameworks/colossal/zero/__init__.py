"""What low-level ZeRO needs beside the plugin: which parameters it cannot hold, and an order of reductions."""
