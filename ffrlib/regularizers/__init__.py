"""Both families of penalties: `weight` (HGSR) and `flow` (FFR), and their `proximal` steps."""
