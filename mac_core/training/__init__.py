"""Training: data, losses, stages. Never imported by the engine or the server."""
