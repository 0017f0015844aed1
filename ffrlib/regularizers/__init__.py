"""Both families of penalties: `weight` (HGSR), `flow` (FFR), their `proximal` steps, and matched `strength`s."""
