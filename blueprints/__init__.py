"""The endpoints, one module per resource: parse, call billing, return."""
