"""The trained parts and the frozen base LM. Knows nothing of stores, threads or HTTP."""
