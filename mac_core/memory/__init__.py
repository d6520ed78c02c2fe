"""Where documents are durable (store) and how the engine reads them (bank). Knows no network."""
