"""What the business does: periods, packages, the payment queue, collection, callbacks. Knows no HTTP."""
