"""Over-the-air aggregation: `transceiver` for dense updates, `sparse` for pruned ones."""
