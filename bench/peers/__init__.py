"""Vade beside the queues that a user would pick instead, each doing the same work for a due period."""
