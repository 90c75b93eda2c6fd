"""Radio maths: arrays in, arrays or frozen dataclasses out. Knows no torch, no Flower, no Hydra."""
