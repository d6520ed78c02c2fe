"""One module per group of routes; a route is parse, call, return."""
