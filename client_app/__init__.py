"""The Flower ClientApp: local training, importance and masks, device state."""
