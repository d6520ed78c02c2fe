"""HTTP in front of the engine. No torch, no tensors."""
