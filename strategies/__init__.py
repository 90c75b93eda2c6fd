"""Flower strategies: how a round is planned, and how uploads become the next global part."""
