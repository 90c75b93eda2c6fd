"""What runs the devices: worker processes of this command, or Flower's own simulation."""
